# SPDX-License-Identifier: MIT
"""Stores that the operator wrote: found, made, checked, and kept to the contract."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from xenpy.backend import DeviceError
from xenpy.drivers.block.store import Buffer, Store
from xenpy.drivers.block.stores.guarded import Guarded
from xenpy.drivers.block.stores.python import open_python_store

SOURCE = '''
from __future__ import annotations
from dataclasses import dataclass
from xenpy.drivers.block.store import Store

@dataclass
class Zeros(Store):
    """Writes vanish."""
    sectors: str = "8"
    def __post_init__(self):
        self.size = int(self.sectors) * 512
    def readinto(self, buffer, offset):
        buffer[:] = bytes(len(buffer))
    def write(self, buffer, offset): pass
    def flush(self): pass
    def close(self): pass

class Fixed(Zeros):
    readonly = True

class Broken(Zeros):
    def __init__(self):
        raise RuntimeError("no such cluster")

class Sizeless(Zeros):
    def __init__(self): pass

class Small(Zeros):
    def __init__(self):
        self.size = 511

class Half(Store):
    size = 512

class Other:
    pass
'''


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "zeros.py"
    path.write_text(SOURCE)
    return path


def test_a_class_of_a_file_with_its_options(module: Path) -> None:
    store = open_python_store(f"{module}:Zeros?sectors=16", readonly=False)
    assert store.size == 8192
    assert not store.readonly
    store.close()
    store = open_python_store(f"{module}:Zeros", readonly=True)
    assert (store.size, store.readonly) == (4096, True)
    store.close()


def test_a_class_of_a_module(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(module.parent))
    store = open_python_store("zeros:Zeros?sectors=1", readonly=False)
    assert store.size == 512
    store.close()
    del sys.modules["zeros"]


def test_a_file_is_read_anew_for_each_disk(module: Path) -> None:
    open_python_store(f"{module}:Zeros", readonly=False).close()
    module.write_text(SOURCE.replace("* 512", "* 1024"))
    store = open_python_store(f"{module}:Zeros", readonly=False)
    assert store.size == 8192
    store.close()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("FILE", "names no class; give python:/path/to/file.py:Class"),
        ("FILE:", "names no class"),
        ("FILE:Zeros?sectors", "not key=value"),
        ("FILE:Nothing", "AttributeError"),
        ("FILE:Other", "no subclass of xenpy.drivers.block.store.Store"),
        ("FILE:Half", "TypeError: .*abstract"),
        ("FILE:Zeros?colour=red", "TypeError: .*colour"),
        ("FILE:Zeros?sectors=many", "ValueError"),
        ("FILE:Broken", "RuntimeError: no such cluster"),
        ("FILE:Sizeless", "has size None"),
        ("FILE:Small", "at least one sector"),
        ("FILE:Fixed", "is read-only: attach it with mode=r"),
        ("zeros.py:Zeros", "not an absolute path"),
        ("/nowhere/zeros.py:Zeros", "FileNotFoundError"),
        ("no.such.module:Zeros", "ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_made_says_why(module: Path, words: str, reason: str) -> None:
    with pytest.raises(DeviceError, match=reason):
        open_python_store(words.replace("FILE", str(module)), readonly=False)


class Turns(Store):
    """Notes how many threads were in it at once."""

    def __init__(self) -> None:
        self.size = 4096
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()

    def readinto(self, buffer: Buffer, offset: int) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        time.sleep(0.02)
        with self._lock:
            self._inside -= 1

    def write(self, buffer: Buffer, offset: int) -> None:
        self.readinto(buffer, offset)

    def flush(self) -> None:
        self.readinto(memoryview(b""), 0)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("parallel", [False, True])
def test_a_store_is_asked_one_thing_at_a_time_unless_it_says_otherwise(parallel: bool) -> None:
    inner = Turns()
    inner.parallel = parallel
    store = Guarded(inner, readonly=False)
    buffer = memoryview(bytearray(512))
    calls = [
        lambda: store.readinto(buffer, 0),
        lambda: store.readv([buffer, buffer], 0),
        lambda: store.write(buffer, 0),
        lambda: store.writev([buffer], 0),
        lambda: store.zero(0, 512),
        store.flush,
    ]
    barrier = threading.Barrier(len(calls))

    def run(number: int) -> None:
        barrier.wait(30)
        calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inner.most > 1) == parallel
