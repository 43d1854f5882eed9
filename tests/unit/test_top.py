# SPDX-License-Identifier: MIT
"""`xenpy top`: rates, their order, what a daemon costs, and the keys of a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from conformance.store_thread import StoreThread
from fences import ROOT
from xenpy.cli.ls import Line, rates_of
from xenpy.cli.main import EXIT_USAGE, main
from xenpy.device_list import Listed
from xenpy.process_load import load_of
from xenpy.xenstore import Store

DEVICES = ("vbd3/7/51712", "vbd3/8/51712", "vif/7/0")


@pytest.fixture
def thread() -> Iterator[StoreThread]:
    with StoreThread() as thread:

        async def fill() -> None:
            async with Store.open(thread.path) as store:
                for name in DEVICES:
                    kind, domid, devid = name.split("/")
                    back = f"/local/domain/0/backend/{name}"
                    front = f"/local/domain/{domid}/device/{kind.strip('3')}/{devid}"
                    for path, other in ((back, front), (front, back)):
                        end = "frontend" if path == back else "backend"
                        await store.write(f"{path}/{end}", other)
                        await store.write(f"{path}/state", 4)

        asyncio.run(fill())
        yield thread


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look finds more than the one before."""
    looks: dict[str, int] = {}
    each: Mapping[str, Mapping[str, int]] = {
        "vbd3/7/51712": {"rd_req": 10, "wr_req": 1, "f_req": 1, "rd_sect": 80, "errors": 2},
        "vbd3/8/51712": {"rd_req": 1, "wr_req": 50, "f_req": 0, "rd_sect": 8, "wr_sect": 400},
    }

    def count(device: Listed, _: int) -> Mapping[str, int]:
        number = looks[device.name] = looks.get(device.name, 0) + 1
        found = each.get(device.name, {})
        return {name: value * number for name, value in found.items()}

    monkeypatch.setattr("xenpy.cli.ls.counters", count)


@pytest.mark.parametrize(
    ("by", "first"),
    [
        ("requests", "vbd3/8/51712"),
        ("reads", "vbd3/7/51712"),
        ("writes", "vbd3/8/51712"),
        ("mib", "vbd3/8/51712"),
        ("device", "vbd3/7/51712"),
    ],
)
def test_the_busiest_comes_first(
    thread: StoreThread, counted: None, capsys: pytest.CaptureFixture[str], by: str, first: str
) -> None:
    words = ("--store", thread.path, "--interval", "0.05", "--count", "2", "--sort", by, "--json")
    assert main(["top", *words]) == 0
    looks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(looks) == 2
    for look in looks:
        devices = look["devices"]
        assert devices[0]["device"] == first
        assert {one["device"] for one in devices} == set(DEVICES)
        rates = {one["device"]: one["rates"] for one in devices}
        assert rates["vbd3/8/51712"]["wr_req"] == pytest.approx(50 / look["seconds"], rel=0.01)
        assert rates["vif/7/0"] == {}


def test_a_table_for_each_look(
    thread: StoreThread,
    counted: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def in_half_a_second(now: Sequence[Line], then: Sequence[Line], _: float) -> object:
        return rates_of(now, then, 0.5)

    monkeypatch.setattr("xenpy.cli.top.rates_of", in_half_a_second)
    words = ("--store", thread.path, "--interval", "0.01", "--count", "1")
    assert main(["top", *words]) == 0
    title, gap, head, *rows, end = capsys.readouterr().out.splitlines()
    assert re.match(r"\d\d:\d\d:\d\d  3 devices, 126 requests/s, 0\.5 MiB/s; by requests", title)
    assert (gap, end) == ("", "")
    assert head.split()[:4] == ["DEVICE", "DOMAIN", "READ/S", "WRITE/S"]
    assert rows[0].split()[:4] == ["vbd3/8/51712", "-", "2", "100"]
    assert rows[1].split() == ["vbd3/7/51712", "-", "20", "2", "2", "0.1", "0.0", "4", "-"]
    assert rows[2].split() == ["vif/7/0", *"--------"]
    # A figure ends where its head does.
    assert {row[head.index("READ/S") + 5] for row in rows} == {"2", "0", "-"}


def test_a_count_of_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--count", "0"]) == EXIT_USAGE
    assert "--count is 0; give 1 or more" in capsys.readouterr().err


# ------------------------------------------------------------------ what a daemon costs


def test_a_process_and_its_children() -> None:
    busy = "import time\nwhile True: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while (load := load_of(process.pid)) is None or load.seconds < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert load.resident > 8 << 20, "two interpreters"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert load_of(process.pid) is None


def test_a_process_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "7/task/7").mkdir(parents=True)
    (tmp_path / "7/stat").write_text("7 (a) b (c)) S " + " ".join(map(str, range(4, 53))))
    (tmp_path / "7/task/7/children").write_text("8 ")
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGESIZE")
    load = load_of(7, tmp_path)
    # proc(5): utime is field 14, stime 15, rss 24.
    assert load is not None
    assert (load.seconds, load.resident) == ((14 + 15) / ticks, 24 * page)


def test_the_share_of_a_daemon(
    thread: StoreThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        (tmp_path / "backend-vbd3.lock").write_text(f"{process.pid}\n")
        words = ["--store", thread.path, "--interval", "0.5", "--count", "1"]
        assert main(["top", *words, "--rundir", str(tmp_path), "--json"]) == 0
        (daemon,) = json.loads(capsys.readouterr().out)["daemons"]
        assert daemon["pid"] == process.pid
        assert 0.01 < daemon["cpu"] < 1.5
        assert main(["top", *words, "--rundir", str(tmp_path)]) == 0
        assert f"xenpy {process.pid}: " in capsys.readouterr().out
    finally:
        process.kill()
        process.wait()


# ------------------------------------------------------------------ on a terminal


def until(fd: int, part: bytes, seen: bytes = b"") -> bytes:
    """Read until it is there."""
    deadline = time.monotonic() + 30
    while part not in seen:
        assert select.select([fd], [], [], deadline - time.monotonic())[0], seen
        seen += os.read(fd, 65536)
    return seen


@pytest.mark.parametrize("end", ["q", signal.SIGTERM, signal.SIGINT])
def test_the_keys_of_a_terminal(thread: StoreThread, end: str | signal.Signals) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(ours)
    command = [sys.executable, "-m", "xenpy.cli", "top", "--store", thread.path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LINES": "6", "COLUMNS": "70"}
    process = subprocess.Popen(
        [*command, "--interval", "0.2"], stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment,
    )  # fmt: skip
    os.close(theirs)
    try:
        until(ours, b"\x1b[?1049h")
        first = until(ours, b"by requests")
        first = until(ours, b"by requests", first[first.index(b"by requests") + 1 :])
        assert b"DEVICE" in first
        assert b"SERVED BY" not in first, "cut to the width of the terminal"
        assert termios.tcgetattr(ours) != before
        os.write(ours, b"m")
        until(ours, b"by mib")
        if isinstance(end, str):
            os.write(ours, end.encode())
        else:
            process.send_signal(end)
        until(ours, b"\x1b[?1049l")
        assert process.wait(30) == (130 if end == signal.SIGINT else 0)
        assert termios.tcgetattr(ours) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
