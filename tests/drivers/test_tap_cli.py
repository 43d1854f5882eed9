# SPDX-License-Identifier: MIT
"""`xenpy tap` and `xenpy replay`: what they print, their exit statuses, and what is refused."""

from __future__ import annotations

import io
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE
from conformance.fake_framework import FakeFramework, env
from conformance.served_disk import Served, offers, served
from fences import ROOT
from xenpy.capture import Head
from xenpy.cli.main import EXIT_FAILED, EXIT_NO_XEN, EXIT_USAGE, main
from xenpy.cli.tap_sinks import decode_of
from xenpy.control import Answer
from xenpy.driver import nothing
from xenpy.drivers.block.protocol import ABI_X86_64, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE
from xenpy.trace import Trace, TraceReader

__all__ = ["env", "offers", "served"]

DEVICE = "vbd3/1/51712"

Later = Callable[[Callable[[], None]], None]


class Tapped:
    """A daemon's answer, and the ring that it is about."""

    def __init__(self, driver: str = "block") -> None:
        self.driver = driver
        self.trace = Trace()
        self.daemon, self._client = socket.socketpair()

    def ask(self, device: str, rundir: str) -> Answer:
        assert device == DEVICE
        answer = {"driver": self.driver, "layout": "x86_64-abi"}
        return Answer(self._client, answer, [self.trace.reader_fd()])

    def put(self, operation: int, sector: int, status: int = 0) -> None:
        segments = [] if operation == OP_FLUSH_DISKCACHE else [(9, 0, 7)]
        slot = ABI_X86_64.pack_request(operation, sector, sector, segments)
        answer = ABI_X86_64.response(sector, operation, status)
        now = time.monotonic_ns()
        self.trace.put(now, sector, 8 * len(segments), slot, answer)

    def close(self) -> None:
        self.trace.close()
        self.daemon.close()


@pytest.fixture
def tapped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tapped]:
    tapped = Tapped()
    monkeypatch.setattr("xenpy.control.ask", tapped.ask)
    yield tapped
    tapped.close()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[Later]:
    """Does something in a thread, once the tap sees everything."""
    reads = threading.Event()
    threads: list[threading.Thread] = []

    class Reader(TraceReader):
        def __init__(self, fd: int) -> None:
            super().__init__(fd)
            reads.set()

    def start(act: Callable[[], None]) -> None:
        def wait() -> None:
            reads.wait(PATIENCE)
            act()

        threads.append(threading.Thread(target=wait))
        threads[-1].start()

    monkeypatch.setattr("xenpy.cli.tap_sources.TraceReader", Reader)
    yield start
    for thread in threads:
        thread.join(PATIENCE)


def work(tapped: Tapped) -> None:
    tapped.put(OP_READ, 2048)
    tapped.put(OP_WRITE, 8, status=-1)
    tapped.put(OP_FLUSH_DISKCACHE, 0)


def check_lines(out: str) -> None:
    first, second, third = out.splitlines()
    assert first.split()[1:8] == ["0/2048", "read", "8", "sectors", "at", "2048", "nr_segments"]
    assert " okay " in first
    assert " error " in second
    assert third.split()[2:6] == ["flush", "nr_segments", "0", "okay"]


def test_a_line_for_each_request(
    tapped: Tapped, later: Later, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        work(tapped)
        tapped.trace.close()

    later(act)
    assert main(["tap", DEVICE]) == 0
    out, err = capsys.readouterr()
    check_lines(out)
    assert "vbd3/1/51712: 1 ring, exact" in err
    assert "3 requests, 0 lost, in " in err


def test_json_is_a_line_for_each_as_well(
    tapped: Tapped, later: Later, capsys: pytest.CaptureFixture[str]
) -> None:
    later(lambda: work(tapped))
    assert main(["tap", DEVICE, "--json", "--count", "2"]) == 0
    head, *requests, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert (head["device"], head["rings"], head["exact"]) == (DEVICE, 1, True)
    assert [one["status"] for one in requests] == ["okay", "error"]
    assert (end["requests"], end["lost"]) == (2, 0)


def test_a_capture_is_shown_as_what_it_was_made_of(
    capture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["tap", "--read", str(capture)]) == 0
    out, err = capsys.readouterr()
    check_lines(out)
    assert "3 requests, 0 lost, in " in err
    # A part of it, and that as JSON.
    part = tmp_path / "part"
    assert main(["tap", "--read", str(capture), "--count", "2", "--write", str(part)]) == 0
    capsys.readouterr()
    assert main(["tap", "--read", str(part), "--json"]) == 0
    _, *requests, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert [one["op"] for one in requests] == ["read", "write"]
    assert end["requests"] == 2


def test_a_capture_that_was_cut_off_is_shown_so_far(
    capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture.write_bytes(capture.read_bytes()[:-10])
    assert main(["tap", "--read", str(capture)]) == EXIT_USAGE
    out, err = capsys.readouterr()
    check_lines(out)
    assert "it was cut off" in err


@pytest.mark.parametrize("how", ["daemon", "time", "signal"])
def test_it_ends(
    tapped: Tapped, later: Later, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """And what came before the end is still shown."""
    words = ["--seconds", "0.5"] if how == "time" else []

    def act() -> None:
        work(tapped)
        if how == "daemon":
            tapped.daemon.close()
        elif how == "signal":
            while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                time.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)

    later(act)
    assert main(["tap", DEVICE, "--interval", "0.05", *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_of_a_driver_that_is_not_here_bytes_are_shown(
    tapped: Tapped, later: Later, capsys: pytest.CaptureFixture[str]
) -> None:
    tapped.driver = "elsewhere"
    later(lambda: work(tapped))
    assert main(["tap", DEVICE, "--count", "1"]) == 0
    assert " -> 0008" in capsys.readouterr().out


@pytest.mark.parametrize("of", ["no daemon", "no capture", "itself", "itself by another name"])
def test_a_capture_is_kept_until_there_is_another_one(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, of: str,
) -> None:  # fmt: skip
    monkeypatch.undo()
    before = capture.read_bytes()
    none, link = tmp_path / "none", tmp_path / "link"
    link.hardlink_to(capture)
    words, status, said = {
        "no daemon": ([DEVICE, "--rundir", str(tmp_path), "--store", str(none)], EXIT_NO_XEN, ""),
        "no capture": (["--read", str(none)], EXIT_FAILED, "No such file"),
        "itself": (["--read", str(capture)], EXIT_USAGE, "is the capture that is read"),
        "itself by another name": (["--read", str(link)], EXIT_USAGE, "is the capture that is"),
    }[of]
    assert main(["tap", *words, "--write", str(capture)]) == status
    assert said in capsys.readouterr().err
    assert capture.read_bytes() == before


def test_no_file_is_run_that_only_a_capture_or_a_daemon_names(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, witness = tmp_path / "evil.py", tmp_path / "witness"
    file.write_text(f"open({str(witness)!r}, 'w')")
    name = json.dumps(str(file)).encode()
    capture.write_bytes(capture.read_bytes().replace(b'"block"', name))
    assert main(["tap", "--read", str(capture)]) == EXIT_USAGE
    assert "is no driver's name" in capsys.readouterr().err
    assert decode_of(Head(DEVICE, str(file), "x86_64-abi", 1), None) is nothing
    assert not witness.exists()


OWN = """
from typing import NamedTuple

from xenpy import RingProtocol
from xenpy.wire import i16, u8, u64

class Request(NamedTuple):
    op: u8
    time: u8
    status: i16
    id: u64

class Response(NamedTuple):
    id: u64
    status: i16

OWN = RingProtocol("own", Request, Response)
"""


def test_a_protocol_of_one_s_own_is_told_by_its_file(
    tapped: Tapped, later: Later, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tapped.driver = "own"
    file, capture = tmp_path / "own.py", tmp_path / "capture"
    file.write_text(OWN)

    def act() -> None:
        slot = b"\x03\x04" + (-5).to_bytes(2, "little", signed=True) + bytes(4) + b"\x07" + bytes(7)
        answer = b"\x07" + bytes(7) + (-6).to_bytes(2, "little", signed=True) + bytes(6)
        tapped.trace.put(time.monotonic_ns(), 12, 0, slot, answer)

    later(act)
    assert main(["tap", DEVICE, "--count", "1", "--write", str(capture)]) == 0
    words = ["tap", "--read", str(capture), "--protocol", str(file)]
    assert main([*words, "--json"]) == 0
    _, line, _ = map(json.loads, capsys.readouterr().out.splitlines())
    told = {name: line[name] for name in ("op", "time_", "status", "id", "answered_status")}
    assert told == {"op": 3, "time_": 4, "status": -5, "id": 7, "answered_status": -6}
    assert isinstance(line["time"], float)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert " 0/12 " in out
    assert "op 3, time_ 4, status -5, id 7, answered_status -6" in out
    # Another's, none, and where it is of no use.
    for wrong, said in (
        ([*words[:-1], str(ROOT / "docs/howto/xor.py")], "is of xor, and vbd3/1/51712 speaks own"),
        ([*words[:-1], str(tmp_path / "none.py")], "is no file FILE.py"),
        ([*words, "--write", str(tmp_path / "copy")], "a capture is bytes"),
    ):
        assert main(wrong) == EXIT_USAGE
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vbd3/1"], "no KIND/DOMID/DEVID"),
        ([], "give KIND/DOMID/DEVID"),
        ([DEVICE, "--read", "file"], "or --read FILE"),
        ([DEVICE, "--count", "0"], "--count is 0"),
    ],
)
def test_nonsense_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tap", *words]) == EXIT_USAGE
    assert said in capsys.readouterr().err


def test_without_daemon_and_without_xen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rundir", str(tmp_path), "--store", str(tmp_path / "none")]
    assert main(["tap", DEVICE, *words]) == EXIT_NO_XEN
    assert main(["tap", DEVICE, "--wait", "0.3", *words]) == EXIT_NO_XEN
    assert "[ENOENT]" in capsys.readouterr().err


# ------------------------------------------------------------------ replay


@pytest.fixture
def capture(
    tapped: Tapped, later: Later, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """Of a read that went well and a write that did not."""
    file = tmp_path / "disk.capture"
    later(lambda: work(tapped))
    assert main(["tap", DEVICE, "--count", "3", "--write", str(file)]) == 0
    assert capsys.readouterr().out == ""
    return file


def test_what_is_answered_in_another_way_is_shown(
    env: FakeFramework, served: Served, capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--store", env.store_path() or ""]
    words = ["replay", str(capture), served.backend.front, "--destroy", *place]
    assert main(words) == EXIT_FAILED
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  write at 8: error in the capture, okay here"
    ]
    assert main([*words, "--json", "--pace", "--depth", "1"]) == EXIT_FAILED
    said = json.loads(capsys.readouterr().out)
    assert (said["requests"], said["same"], said["different"]) == (3, 2, 1)
    (example,) = said["examples"]
    assert (example["status"], example["request"]["op"]) == ("okay", "write")
    assert bytes(served.backend.disk[8 * 512 : 8 * 512 + 16]) == (8).to_bytes(8, "little") * 2


def test_a_capture_that_is_answered_the_same(
    env: FakeFramework, served: Served, capture: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    error, okay = ABI_X86_64.response(8, OP_WRITE, -1), ABI_X86_64.response(8, OP_WRITE, 0)

    class Input:
        buffer = io.BytesIO(capture.read_bytes().replace(error, okay))

    monkeypatch.setattr(sys, "stdin", Input())
    place = ["--store", env.store_path() or ""]
    assert main(["replay", "-", served.backend.front, "--destroy", *place]) == 0
    assert "3 requests in " in capsys.readouterr().out


def test_a_disk_that_never_answers_is_not_waited_for_for_ever(
    env: FakeFramework, served: Served, capture: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(served.backend, "answer", lambda *_: None)
    monkeypatch.setattr("xenpy.frontend_life.CLOSE_BOUND", 1.0)
    place = ["--store", env.store_path() or "", "--timeout", "2"]
    words = ["replay", str(capture), served.backend.front, "--destroy", "--json", *place]
    assert main(words) == EXIT_FAILED
    said = capsys.readouterr()
    assert "the backend does not answer" in said.err
    assert json.loads(said.out)["errno"] == "ETIMEDOUT"


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ((b"", b""), [], "the capture has writes"),
        ((b"", b""), ["--depth", "0", "--destroy"], "depth is 0"),
        ((b'"driver": "block"', b'"driver": "lamp_"'), ["--destroy"], "no disk of block's"),
        ((b'"end"', b'"and'), ["--destroy"], "it was cut off"),
        ((b'"capture": 1', b'"capture": 9'), ["--destroy"], "that is no capture"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    capture: Path, capsys: pytest.CaptureFixture[str], change: tuple[bytes, bytes],
    words: list[str], said: str,
) -> None:  # fmt: skip
    capture.write_bytes(capture.read_bytes().replace(*change))
    assert main(["replay", str(capture), "xvdb", *words]) == EXIT_USAGE
    assert said in capsys.readouterr().err


def test_a_capture_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["replay", str(tmp_path / "none"), "xvdb"]) == EXIT_FAILED
    assert "No such file" in capsys.readouterr().err
