# SPDX-License-Identifier: MIT
"""Metrics: what a scrape says is what the devices say, parsed by Prometheus' own client."""

from __future__ import annotations

import asyncio
import socket
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from conformance.block_front import PATIENCE
from conformance.block_front_suite import acted
from conformance.fake_framework import FakeFramework, env
from conformance.framework_front import KIND
from conformance.tap_suite import our_disk, serving
from xenpy.cli.main import EXIT_USAGE, main
from xenpy.drivers.block.datapath import Counters
from xenpy.metrics import MEANINGS, parse_address, start

__all__ = ["env"]

Labels = Mapping[str, str]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def scrape(port: int, accept: str = "") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
    if accept:
        request.add_header("Accept", accept)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
    return text


def samples(text: str) -> dict[str, list[tuple[Labels, float]]]:
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@acted
async def test_a_scrape_says_what_the_devices_say(env: FakeFramework, tmp_path: Path) -> None:
    port = free_port()
    async with serving(env, tmp_path) as daemon:
        start(daemon.service, ("127.0.0.1", port))
        before = samples(await asyncio.to_thread(scrape, port))
        assert "xenpy_rd_req_total" not in before
        assert before["xenpy_deferred_unmaps"] == [({}, 0)]
        async with our_disk(daemon, tmp_path / "disk.img") as (_, disk):
            await disk.pwrite(bytes(4096), 0)
            await disk.pread(1024, 0)
            await disk.flush()
            found = samples(await asyncio.to_thread(scrape, port))
            labels = {"kind": KIND, "domid": str(env.front_domid), "devid": "51712"}
            for name, count in (("wr_req", 1), ("rd_req", 1), ("f_req", 1), ("wr_sect", 8)):
                assert found[f"xenpy_{name}_total"] == [(labels, count)]
            assert found["xenpy_device_connected"] == [(labels, 1)]
            assert found["xenpy_device_draining"] == [(labels, 0)]
            # As Prometheus itself asks.
            kind = "application/openmetrics-text; version=1.0.0"
            text = await asyncio.to_thread(scrape, port, kind)
            assert text.endswith("# EOF\n")
            names = {family.name for family in open_metrics(text)}
            assert {"xenpy", "xenpy_rd_req", "xenpy_errors"} <= names
        assert "process_resident_memory_bytes" in found


def test_every_counter_of_a_disk_has_a_meaning() -> None:
    assert set(Counters.__slots__) == set(MEANINGS)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("9123", ("127.0.0.1", 9123)), ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:9123", ("::1", 9123)), ("dom0.example:1", ("dom0.example", 1)),
    ],
)  # fmt: skip
def test_an_address(text: str, place: tuple[str, int]) -> None:
    assert parse_address(text) == place


@pytest.mark.parametrize("text", ["", "x", "0", "65536", "1:2:3", "::1:80", "host:", ":80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="metrics is"):
        parse_address(text)


def test_the_command_line_refuses_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["serve", "block", "--rundir", str(tmp_path), "--metrics", "nowhere"]
    assert main(words) == EXIT_USAGE
    assert "give [ADDRESS:]PORT" in capsys.readouterr().err


def test_without_the_package_it_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "xenpy.metrics")
    words = ["serve", "block", "--rundir", str(tmp_path), "--metrics", "9123"]
    assert main(words) == EXIT_USAGE
    assert "python3-prometheus-client" in capsys.readouterr().err
