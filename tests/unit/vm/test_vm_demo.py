# SPDX-License-Identifier: MIT
"""The demo's verdict: "ok" takes every observation, and each that fails is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xenpy.vm.dom0_demo import FILE_MIB, FILES, Report

WRITTEN = len(FILES) * FILE_MIB << 20


def seen() -> Report:
    """What a run looks like in which everything held."""
    return Report(
        xen_version="4.20.0", dom0_kernel="6.12", guest_kernel="6.12", frontend="vbd",
        backend="xenpy serve block (pid 1)", guest_sha256="a" * 64, host_sha256="a" * 64,
        guest_requests=210, requests=210, bytes_written=WRITTEN, bytes_read=4096, batches=90,
        notifications=80, fsck=0, seconds=20.0, problems=[],
    )  # fmt: skip


def test_everything_held() -> None:
    report = seen()
    report.judge()
    assert report.ok
    assert report.problems == []
    assert report.table().splitlines()[-1].split() == ["verdict", "ok"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"frontend": "qemu"}, "the guest's disk is bound to 'qemu'"),
        ({"guest_sha256": "", "host_sha256": ""}, "the guest gave no sha256"),
        ({"host_sha256": "b" * 64}, "guest and image differ"),
        ({"requests": 0, "guest_requests": 0}, "no request was served"),
        ({"guest_requests": 211}, "210 requests served, the guest counts 211"),
        ({"bytes_written": WRITTEN - 1}, "too little was written"),
        ({"fsck": 4}, "e2fsck ended with status 4"),
    ],
)
def test_each_observation_counts(change: dict[str, object], problem: str) -> None:
    report = replace(seen(), **change, problems=[])  # type: ignore[arg-type]
    report.judge()
    assert not report.ok
    assert report.problems == [problem]
    assert problem in report.table().splitlines()[-1]


def test_what_went_wrong_before_is_not_forgotten() -> None:
    report = seen()
    report.problems.append("xen_blkback is loaded")
    report.judge()
    assert not report.ok
    assert report.problems == ["xen_blkback is loaded"]


def test_nothing_seen_is_not_ok() -> None:
    report = Report()
    report.judge()
    assert not report.ok
    assert "no request was served" in report.problems
