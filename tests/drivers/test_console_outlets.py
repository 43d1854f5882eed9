# SPDX-License-Identifier: MIT
"""What a console leads to, one by one."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.devlog import BoundedLog
from xenpy.drivers.console.backlog import Backlog
from xenpy.drivers.console.driver import plan
from xenpy.drivers.console.hub import TYPED_LIMIT, Hub
from xenpy.drivers.console.log_outlet import LogOutlet
from xenpy.drivers.console.outlet import Outlet
from xenpy.drivers.console.settings import LogSettings
from xenpy.drivers.console.socket_outlet import SocketOutlet

LOG = BoundedLog(logging.getLogger("test"), "console/1/1")


class Recorder(Outlet):
    """Notes what happens to it."""

    @property
    def lost(self) -> int:
        return 0

    def __init__(self) -> None:
        self.events: list[str] = []

    def put(self, content: bytes) -> None:
        self.events.append(content.decode())

    def pause(self) -> None:
        self.events.append("pause")

    def resume(self) -> None:
        self.events.append("resume")

    def close(self) -> None:
        self.events.append("close")


@given(st.lists(st.tuples(st.binary(max_size=30), st.integers(0, 10))))
def test_a_backlog_is_the_newest_bytes(steps: list[tuple[bytes, int]]) -> None:
    backlog, model, lost = Backlog(16), b"", 0
    for content, taken in steps:
        backlog.add(content)
        model += content
        lost += max(0, len(model) - 16)
        model = model[-16:]
        assert backlog.first(100) == model
        assert backlog.first(2) == model[:2]
        assert backlog.find(b"\0\0") == model.find(b"\0\0")
        count = min(taken, len(model))
        backlog.took(count)
        model = model[count:]
    assert (backlog.lost, len(backlog)) == (lost, len(model))


@given(st.lists(st.binary(max_size=50)), st.integers(1, 20), st.integers(0, 3))
def test_a_log_is_the_newest_files(contents: list[bytes], size: int, keep: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        log = LogOutlet(path, LOG, size=size, keep=keep)
        for content in contents:
            log.put(content)
        log.close()
        names = [path, *(Path(f"{path}.{n + 1}") for n in range(keep))]
        files = [name.read_bytes() for name in reversed(names) if name.exists()]
        assert sorted(Path(directory).iterdir()) == sorted(names[: len(files)])
        assert all(len(file) == size for file in files[:-1])
        assert len(files[-1]) <= size
        everything = b"".join(contents)
        kept = b"".join(files)
        assert everything.endswith(kept)
        assert len(files) == keep + 1 or kept == everything


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before ")
    log = LogOutlet(path, LOG, size=10)
    log.put(b"after")
    log.close()
    log.close()
    assert (tmp_path / "log.1").read_bytes() + path.read_bytes() == b"before after"


def test_a_full_disk_costs_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LogOutlet(tmp_path / "log", LOG)

    def full(fd: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.write", full)
        log.put(b"lost")
    log.put(b"kept")
    log.close()
    assert log.lost == 4
    assert (tmp_path / "log").read_bytes() == b"kept"


def test_a_log_is_no_link_and_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        LogOutlet(tmp_path / "log", LOG)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"no file|No such device"):
        LogOutlet(tmp_path / "pipe", LOG)


def test_a_log_that_was_there_is_root_s_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"")
    path.chmod(0o644)
    LogOutlet(path, LOG).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_put_aside_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogOutlet(tmp_path / "log", LOG, size=4, keep=2)
    for word in (b"one.", b"two.", b"tre."):
        log.put(word)

    def no_more(path: Path, flags: int, mode: int = 0) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("os.open", no_more)
        for _ in range(4):
            log.put(b"lost")
    assert log.lost == 16
    kept = [tmp_path / name for name in ("log.2", "log.1", "log")]
    assert b"".join(path.read_bytes() for path in kept) == b"one.two.tre."
    log.put(b"for.")
    log.close()
    assert b"".join(path.read_bytes() for path in kept) == b"two.tre.for."


def test_who_types_too_much_is_paused() -> None:
    hub, outlet = Hub(), Recorder()
    hub.outlets.append(outlet)
    hub.typed(bytes(TYPED_LIMIT - 1))
    assert outlet.events == []
    hub.typed(b"x")
    hub.typed(b"x")
    assert outlet.events == ["pause"]
    assert hub.take(lambda content: 0) == 0
    assert outlet.events == ["pause"]
    assert hub.take(lambda content: 2) == 2
    assert outlet.events == ["pause", "resume"]
    assert hub.take(len) == TYPED_LIMIT - 1
    assert hub.take(len) == 0
    hub.close()
    hub.close()
    assert outlet.events[-1] == "close"
    assert outlet.events.count("close") == 1


def test_a_socket_that_is_in_the_way(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        path.write_bytes(b"precious")
        with pytest.raises(OSError, match="no socket"):
            SocketOutlet(path, Hub())
        assert path.read_bytes() == b"precious"
        path.unlink()
        first = SocketOutlet(path, Hub())
        with pytest.raises(OSError, match="listens"):
            SocketOutlet(path, Hub())
        first.close()
        first.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
            left.bind(str(path))
        SocketOutlet(path, Hub()).close()
        with pytest.raises(OSError, match="too long"):
            SocketOutlet(tmp_path / ("x" * 108), Hub())

    asyncio.run(main())


def test_a_reader_that_does_not_read_loses_the_oldest(tmp_path: Path) -> None:
    async def main() -> None:
        outlet = SocketOutlet(tmp_path / "socket", Hub())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as reader:
            reader.connect(str(outlet.path))
            while not outlet.readers:
                await asyncio.sleep(0.001)
            for _ in range(100):
                outlet.put(bytes(10_000))
            assert outlet.lost > 0
            lost = outlet.lost
        for _ in range(100):
            await asyncio.sleep(0.001)
        outlet.put(b"to nobody")
        assert (outlet.readers, outlet.lost) == (0, lost)
        outlet.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"devid": "0"}, "devid"),
        ({"devid": "10"}, "devid"),
        ({"devid": "1.5"}, "whole"),
        ({"connection": "tty"}, "pty, socket, none"),
        ({"connection": "socket"}, "path=SOCKET"),
        ({"connection": "pty", "path": "/x"}, "path=SOCKET"),
        ({"target": "/x"}, "no 'target'"),
    ],
)
def test_words_that_make_no_sense(words: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan(words, "console")


def test_words_that_do() -> None:
    made = plan({"path": "relative", "name": "org.qemu.agent"}, "console")
    assert made.devid == 1
    assert made.backend_keys["connection"] == "socket"
    assert made.backend_keys["path"] == str(Path("relative").absolute())
    assert made.backend_keys["name"] == "org.qemu.agent"


@pytest.mark.parametrize(
    "options", [{"log-size": "0"}, {"log-size": "x"}, {"log-keep": "1.5"}, {"log-keep": "100"}]
)
def test_settings_that_make_no_sense(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"log-|size"):
        LogSettings.parse(options)
