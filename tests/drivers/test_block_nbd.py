# SPDX-License-Identifier: MIT
"""The NBD store against qemu-nbd: what it offers, and what it does when it hangs or dies."""

from __future__ import annotations

import errno
import importlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.nbd_server import PATIENCE, QemuNbd, have_libnbd
from xenpy.backend import DeviceError
from xenpy.drivers.block.store import Store
from xenpy.drivers.block.stores import nbd
from xenpy.drivers.block.stores.nbd import open_nbd_store
from xenpy.drivers.block.stores.nbd_address import TCP_OPTIONS, NbdAddress

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def libnbd() -> None:
    have_libnbd()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xaa" * SIZE)
    return path


@pytest.fixture
def server(image: Path, tmp_path: Path) -> Iterator[QemuNbd]:
    with QemuNbd(image, tmp_path / "socket", "--format=raw", "--discard=unmap") as server:
        yield server


def connect(target: str, *, readonly: bool = False) -> Store:
    return open_nbd_store(NbdAddress.parse(target), readonly=readonly)


def get(store: Store, offset: int = 0, length: int = 512) -> bytes:
    buffer = bytearray(length)
    store.readinto(memoryview(buffer), offset)
    return bytes(buffer)


# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("nbd:unix:/run/a.sock", NbdAddress("/run/a.sock", "", 0, "")),
        ("nbd:unix:/run/a.sock:exportname=x/y", NbdAddress("/run/a.sock", "", 0, "x/y")),
        ("nbd+unix:///?socket=/run/a.sock", NbdAddress("/run/a.sock", "", 0, "")),
        ("nbd+unix:///x%20y?socket=/run/a%2Cb", NbdAddress("/run/a,b", "", 0, "x y")),
        ("nbd://host", NbdAddress("", "host", 10809, "")),
        ("nbd://host:7/x", NbdAddress("", "host", 7, "x")),
        ("nbd://[::1]/x", NbdAddress("", "::1", 10809, "x")),
    ],
)
def test_addresses(text: str, address: NbdAddress) -> None:
    assert NbdAddress.parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "nbd:", "nbd:host:1", "nbd:unix:", "nbd:unix:relative", "nbd://", "nbd:///x",
        "nbd://host:port/", "nbd://host:99999/", "nbd://host/?socket=/a", "nbd://user@host/",
        "nbd+unix:///x", "nbd+unix:///x?socket=a", "nbd+unix:///x?socket=/a&b=c",
        "nbd+unix://host/x?socket=/a", "nbds://host/", "nbds+unix:///?socket=/a", "nbd://[::1",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        NbdAddress.parse(text)


# ------------------------------------------------------------------ what a server offers


def test_writes_reach_the_image_and_flush_the_server(server: QemuNbd, image: Path) -> None:
    store = connect(server.target)
    store.writev([memoryview(b"a" * 512), memoryview(b"b" * 1024)], 1024)
    store.flush()
    assert image.read_bytes()[1024:2560] == b"a" * 512 + b"b" * 1024
    assert store.discard_granularity
    before = image.stat().st_blocks
    store.discard(0, SIZE)
    store.flush()
    assert image.stat().st_blocks < before
    store.zero(0, 512)
    assert get(store) == bytes(512)
    store.close()
    with pytest.raises(OSError, match="closed"):
        store.flush()


def test_large_requests_become_several_commands(
    server: QemuNbd, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "PIECE", 65536)
    store = connect(server.target)
    content = bytes(range(256)) * (SIZE // 256)
    store.writev([memoryview(content)[:700416], memoryview(content)[700416:]], 0)
    assert image.read_bytes() == content
    assert get(store, 512, SIZE - 1024) == content[512:-512]
    store.close()


def test_an_export_by_name_over_tcp(image: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(
        ["qemu-nbd", "--persistent", "--format=raw", "--bind=127.0.0.1", f"--port={port}",
         "--export-name=web", str(image)],
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    store = connect(f"nbd://127.0.0.1:{port}/web")
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            assert (store.size, get(store)) == (SIZE, b"\xaa" * 512)
            store.close()
            with pytest.raises(OSError, match="other"):
                connect(f"nbd://127.0.0.1:{port}/other")
        finally:
            process.kill()


def test_a_host_that_is_gone_is_noticed_without_traffic() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = NbdAddress.parse(f"nbd://127.0.0.1:{listener.getsockname()[1]}/")
        with address.connect(PATIENCE) as connection:
            for level, name, value in TCP_OPTIONS:
                assert connection.getsockopt(level, name) == value


def test_a_read_only_export_needs_a_read_only_disk(image: Path, tmp_path: Path) -> None:
    with QemuNbd(image, tmp_path / "socket", "--format=raw", "--read-only") as server:
        with pytest.raises(DeviceError, match="exports it read-only: attach it with mode=r"):
            connect(server.target)
        store = connect(server.target, readonly=True)
        assert store.readonly
        assert get(store) == b"\xaa" * 512
        store.flush()
        store.close()


def test_an_empty_export_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (
        QemuNbd(tmp_path / "empty", tmp_path / "socket", "--format=raw") as server,
        pytest.raises(DeviceError, match="the export is empty"),
    ):
        connect(server.target)


def test_the_server_s_errors_are_the_guest_s(image: Path, tmp_path: Path) -> None:
    """QEMU's blkdebug fails one write and every flush."""
    (tmp_path / "rules").write_text(
        '[inject-error]\nevent = "pwritev"\niotype = "write"\nerrno = "28"\nonce = "on"\n'
        '[inject-error]\nevent = "pwritev"\niotype = "flush"\nerrno = "5"\n'
    )
    options = f"driver=blkdebug,config={tmp_path}/rules,image.driver=file,image.filename={image}"
    with QemuNbd(options, tmp_path / "socket", "--image-opts") as server:
        store = connect(server.target)
        with pytest.raises(OSError, match=r".+") as caught:
            store.write(memoryview(b"x" * 512), 0)
        assert caught.value.errno == errno.ENOSPC
        store.write(memoryview(b"x" * 512), 0)
        with pytest.raises(OSError, match=r".+") as caught:
            store.flush()
        assert caught.value.errno == errno.EIO
        with pytest.raises(OSError, match="an earlier flush failed"):
            store.flush()
        assert get(store) == b"x" * 512
        store.close()


def flush_afterwards(store: Store) -> None:
    store.write(memoryview(bytes(512)), 0)
    store.flush()


@pytest.mark.parametrize(
    ("work", "flushes"),
    [
        (get, 0),
        (lambda store: store.write(memoryview(bytes(512)), 0), 1),
        (lambda store: store.discard(0, SIZE), 1),
        (lambda store: store.zero(0, 512), 1),
        (flush_afterwards, 1),
    ],
    ids=["read", "write", "discard", "zero", "write and flush"],
)
def test_a_close_flushes_what_was_changed(
    server: QemuNbd, monkeypatch: pytest.MonkeyPatch, work: Callable[[Store], object], flushes: int
) -> None:
    """The next daemon's connection is another one: its flushes need not cover this one's writes."""
    asked: list[str] = []
    handle = importlib.import_module("nbd").NBD
    flush, disconnect = handle.aio_flush, handle.aio_disconnect

    def aio_flush(nbd: object) -> int:
        asked.append("flush")
        return int(flush(nbd))

    def aio_disconnect(nbd: object) -> None:
        asked.append("goodbye")
        disconnect(nbd)

    monkeypatch.setattr(handle, "aio_flush", aio_flush)
    monkeypatch.setattr(handle, "aio_disconnect", aio_disconnect)
    store = connect(server.target)
    work(store)
    store.close()
    store.close()
    assert asked == ["flush"] * flushes + ["goodbye"]


def test_a_close_says_what_it_could_not_flush(
    server: QemuNbd, caplog: pytest.LogCaptureFixture
) -> None:
    store = connect(server.target)
    store.write(memoryview(b"x" * 512), 0)
    server.kill()
    with caplog.at_level(logging.WARNING):
        store.close()
    assert "what was written may be lost: " in caplog.text


# ------------------------------------------------------------------ no server, a bad one


def test_without_libnbd_the_operator_is_told_what_to_install(
    server: QemuNbd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nbd", None)
    with pytest.raises(DeviceError, match="apt-get install python3-libnbd"):
        connect(server.target)


def test_without_a_server_there_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(f"nbd:unix:{tmp_path}/none")


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9])
def test_what_is_no_nbd_server_is_refused(tmp_path: Path, greeting: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            connection.sendall(greeting)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OSError, match=r".+"):
            connect(f"nbd:unix:{tmp_path}/socket")
        thread.join()


def test_a_server_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "CONNECT_BOUND", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with pytest.raises(TimeoutError, match="does not answer"):
            connect(f"nbd:unix:{tmp_path}/socket")


# ------------------------------------------------------------------ it hangs, it dies


def test_a_server_that_dies_is_an_error_for_ever(server: QemuNbd, image: Path) -> None:
    store = connect(server.target)
    store.write(memoryview(b"x" * 512), 0)
    server.kill()
    for call in (lambda: get(store), lambda: store.write(memoryview(bytes(512)), 0), store.flush):
        for _ in range(2):
            with pytest.raises(OSError, match=r"gone|earlier flush failed") as caught:
                call()
            assert caught.value.errno == errno.EIO
    with QemuNbd(image, server.path, "--format=raw"):
        with pytest.raises(OSError, match="gone"):
            get(store)
        connect(server.target).close()
    store.close()


def test_a_server_that_hangs_is_waited_for_and_holds_up_nothing_else(server: QemuNbd) -> None:
    store = connect(server.target)
    server.pause()
    answers: list[bytes] = []
    waiting = threading.Thread(target=lambda: answers.append(get(store)))
    waiting.start()
    # This thread goes on: the wait leaves the interpreter alone.
    turns = 0
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        turns += 1
        time.sleep(0.001)
    assert turns > 20
    assert waiting.is_alive()
    server.resume()
    waiting.join(PATIENCE)
    assert answers == [b"\xaa" * 512]
    store.close()


def test_a_server_that_dies_while_it_is_waited_for(server: QemuNbd) -> None:
    store = connect(server.target)
    server.pause()
    failures: list[int | None] = []

    def ask() -> None:
        try:
            get(store, 0, SIZE)
        except OSError as error:
            failures.append(error.errno)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    server.kill()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == [errno.EIO] * 3
    store.close()


def test_a_close_does_not_wait_for_a_server_that_hangs(
    server: QemuNbd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "GOODBYE_BOUND", 0.1)
    store = connect(server.target)
    server.pause()
    store.close()


def test_nor_does_one_that_has_something_to_flush(
    server: QemuNbd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nbd, "GOODBYE_BOUND", 0.1)
    monkeypatch.setattr(nbd, "FLUSH_BOUND", 0.1)
    store = connect(server.target)
    store.write(memoryview(b"x" * 512), 0)
    server.pause()
    with caplog.at_level(logging.WARNING):
        store.close()
    assert "may be lost: " in caplog.text
    assert "the NBD server does not answer" in caplog.text
