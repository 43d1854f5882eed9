# SPDX-License-Identifier: MIT
"""One daemon for each kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xenpy.service import KindTakenError, claim_kind


def test_a_second_daemon_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with (
        claim_kind("vbd3", tmp_path / "run"),
        pytest.raises(KindTakenError, match=f"'vbd3' is already served by process {os.getpid()} "),
        claim_kind("vbd3", tmp_path / "run"),
    ):
        pytest.fail("both have it")


def test_the_claim_ends_with_its_holder(tmp_path: Path) -> None:
    for _ in range(2):
        with claim_kind("vbd3", tmp_path):
            pass


def test_other_kinds_are_free(tmp_path: Path) -> None:
    with claim_kind("vbd3", tmp_path), claim_kind("console", tmp_path):
        assert sorted(os.listdir(tmp_path)) == ["backend-console.lock", "backend-vbd3.lock"]
