# SPDX-License-Identifier: MIT
"""Every store and every filter, by the one suite."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from conformance.block_front import eventually
from conformance.block_front_suite import Access
from conformance.captures import write_capture
from conformance.fake_framework import FakeFramework
from conformance.framework_front import Guest, Host
from conformance.nbd_server import QemuNbd, have_libnbd
from conformance.store_contract_suite import *  # noqa: F403 - the tests themselves
from conformance.store_contract_suite import SIZE, StoreKind
from conformance.store_thread import StoreThread
from fences import ROOT
from xenpy.devlog import BoundedLog
from xenpy.drivers.block.filters.base import Filter, FilterPlace
from xenpy.drivers.block.filters.chain import FILTERS, parse_filters, wrap
from xenpy.drivers.block.front import BlockDevice
from xenpy.drivers.block.store import Buffer, Store
from xenpy.drivers.block.stores.file import FileStore
from xenpy.drivers.block.stores.front import FrontStore
from xenpy.drivers.block.stores.guarded import Guarded
from xenpy.drivers.block.stores.memory import MemoryStore
from xenpy.drivers.block.stores.nbd import open_nbd_store
from xenpy.drivers.block.stores.nbd_address import NbdAddress
from xenpy.drivers.block.stores.null import NullStore
from xenpy.drivers.block.stores.python import open_python_store

Make = Callable[[pytest.FixtureRequest, Path], StoreKind]


def place(*, readonly: bool = False) -> FilterPlace:
    log = BoundedLog(logging.getLogger("t"), "t")
    return FilterPlace("vbd3/1/51712", readonly, log, python=True)


@contextmanager
def no_fdatasync(_: Store) -> Iterator[None]:
    with patch.object(os, "fdatasync", side_effect=OSError(errno.EIO, "lost")):
        yield


def file(request: pytest.FixtureRequest, directory: Path, *, direct: bool = False) -> StoreKind:
    path = directory / "disk.img"
    path.touch()
    os.truncate(path, SIZE)

    def opened(readonly: bool) -> Store:
        fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        store = FileStore(fd, readonly=readonly, direct=direct)
        assert store.native.direct == direct
        return store

    return StoreKind(opened, break_flush=no_fdatasync)


def memory_kind(request: pytest.FixtureRequest, directory: Path) -> StoreKind:
    return StoreKind(lambda readonly: MemoryStore(SIZE, readonly=readonly), keeps=False)


def null(request: pytest.FixtureRequest, directory: Path) -> StoreKind:
    return StoreKind(lambda readonly: NullStore(SIZE, readonly=readonly), keeps=False, forgets=True)


def nbd(request: pytest.FixtureRequest, directory: Path, *, form: str) -> StoreKind:
    have_libnbd()
    image = directory / f"disk.{form}"
    subprocess.run(["qemu-img", "create", "-q", "-f", form, image, str(SIZE)], check=True)
    server = QemuNbd(image, directory / "socket", f"--format={form}")
    request.addfinalizer(server.kill)

    def opened(readonly: bool) -> Store:
        return open_nbd_store(NbdAddress.parse(server.target), readonly=readonly)

    @contextmanager
    def gone(_: Store) -> Iterator[None]:
        with patch.object(type(_), "_run", side_effect=OSError(errno.EIO, "lost")):
            yield

    return StoreKind(opened, break_flush=gone)


def xen(request: pytest.FixtureRequest, directory: Path) -> StoreKind:
    """A file that a daemon of ours serves, over the fakes."""
    held = ExitStack()
    request.addfinalizer(held.close)
    xenstored = held.enter_context(StoreThread())
    env = FakeFramework(xenstored)
    held.callback(env.close)
    host = Host(env)
    held.callback(host.close)
    image = directory / "disk.img"
    image.touch()
    os.truncate(image, SIZE)
    guest = Guest(host, image, 51728)
    held.callback(guest.remove)
    guest.wait("2")
    known = xenstored.ask(lambda fake: len(fake.peers))

    class Settled(FrontStore):
        """Closed once xenstored, which is in this very process, has closed its end too."""

        def close(self) -> None:
            super().close()
            eventually(lambda: xenstored.ask(lambda fake: len(fake.peers)) == known)

    def opened(readonly: bool) -> Store:
        path, store_path = guest.front_path, env.store_path()
        return Settled(path, readonly=readonly, store_path=store_path, xen=Access(env))

    @contextmanager
    def gone(_: Store) -> Iterator[None]:
        with patch.object(BlockDevice, "flush", side_effect=OSError(errno.EIO, "lost")):
            yield

    return StoreKind(opened, break_flush=gone)


class Fragile(Store):
    """A store as a beginner writes one: no checks, no locks; and its flush breaks on demand."""

    content = bytearray(SIZE)

    def __init__(self) -> None:
        self.size = SIZE
        self.broken = False
        self._busy = False

    def readinto(self, buffer: Buffer, offset: int) -> None:
        self._alone(lambda: buffer.__setitem__(
            slice(None), memoryview(self.content)[offset : offset + len(buffer)]
        ))  # fmt: skip

    def write(self, buffer: Buffer, offset: int) -> None:
        def change() -> None:
            self.content[offset : offset + len(buffer)] = buffer

        self._alone(change)

    def flush(self) -> None:
        if self.broken:
            raise OSError(errno.EIO, "lost")

    def close(self) -> None:
        assert not self._busy

    def _alone(self, call: Callable[[], None]) -> None:
        assert not self._busy, "two threads at once"
        self._busy = True
        call()
        self._busy = False


def fragile_of(store: Store) -> Fragile:
    while isinstance(store, Filter):
        store = store.lower
    assert isinstance(store, Guarded)
    inner = store._inner
    assert isinstance(inner, Fragile)
    return inner


@contextmanager
def broken(store: Store) -> Iterator[None]:
    fragile = fragile_of(store)
    fragile.broken = True
    yield
    fragile.broken = False


def python(request: pytest.FixtureRequest, directory: Path) -> StoreKind:
    Fragile.content = bytearray(SIZE)
    return StoreKind(lambda readonly: Guarded(Fragile(), readonly=readonly), break_flush=broken)


def shown(request: pytest.FixtureRequest, directory: Path, *, words: str, keeps: bool) -> StoreKind:
    """A store that docs/howto/write-a-store.md shows."""
    words = f"{ROOT}/docs/howto/{words.replace('DIR', str(directory))}"

    def opened(readonly: bool) -> Store:
        return open_python_store(words, readonly=readonly)

    return StoreKind(opened, keeps=keeps, break_flush=no_fdatasync if keeps else None)


def filtered(request: pytest.FixtureRequest, directory: Path, *, words: str) -> StoreKind:
    """A filter in front of a fragile store; read-only, below the filter."""
    write_capture(directory / "capture")
    words = words.replace("DIR", str(directory)).replace("HOWTO", f"{ROOT}/docs/howto")
    makers = parse_filters(words)
    Fragile.content = bytearray(SIZE)

    def opened(readonly: bool) -> Store:
        lower = readonly or any(maker.lower_readonly for maker in makers)
        return wrap(Guarded(Fragile(), readonly=lower), makers, place(readonly=readonly))

    kept = "cow" not in words or "overlay" in words
    flush = broken if "cow" not in words else no_fdatasync if kept else None
    return StoreKind(opened, keeps=kept, break_flush=flush)


WORDS = [
    "cow", "cow,overlay=DIR/overlay", "delay,read=0.1,write=0.1,flush=0.1", "error,probability=0",
    "drop,probability=0", "python,class=HOWTO/rotate_filter.py:Rotate,bits=3",
    "log,path=DIR/log", "rate,bps=1G,iops=1000000", "replay,capture=DIR/capture", "stats",
    "log,path=DIR/log,limit=1K stats error,errno=ENOSPC,from=1G,to=2G delay,read=0.01",
    "stats cow,overlay=DIR/overlay stats,name=lower rate,iops=1000000",
]  # fmt: skip

KINDS: dict[str, Make] = {
    "file": file,
    "file direct": partial(file, direct=True),
    "memory": memory_kind,
    "null": null,
    "nbd raw": partial(nbd, form="raw"),
    "nbd qcow2": partial(nbd, form="qcow2"),
    "python": python,
    "xen": xen,
    "ram_store": partial(shown, words=f"ram_store.py:RamStore?size={SIZE}", keeps=False),
    "striped_store": partial(
        shown,
        words=f"striped_store.py:StripedStore?directory=DIR&files=3&size={SIZE}",
        keeps=True,
    ),
    **{words: partial(filtered, words=words) for words in WORDS},
}


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> StoreKind:
    return KINDS[request.param](request, tmp_path)


def test_no_filter_is_left_out() -> None:
    assert {word.split(",")[0] for words in WORDS for word in words.split()} >= set(FILTERS) - {
        "readonly"
    }
