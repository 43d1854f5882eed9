# SPDX-License-Identifier: MIT
"""What each filter does beyond the contract, which test_block_store_contract.py holds."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.captures import HEAD, Seen, write_capture
from xenpy.backend import DeviceError
from xenpy.devlog import BoundedLog
from xenpy.drivers.block.filters.base import FilterPlace
from xenpy.drivers.block.filters.chain import parse_filters, wrap
from xenpy.drivers.block.filters.cow import CLUSTER
from xenpy.drivers.block.filters.rate import Bucket
from xenpy.drivers.block.protocol import (
    OP_DISCARD,
    OP_FLUSH_DISKCACHE,
    OP_INDIRECT,
    OP_READ,
    OP_WRITE,
    OP_WRITE_BARRIER,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
)
from xenpy.drivers.block.store import Buffer, Store
from xenpy.drivers.block.stores.memory import MemoryStore

SIZE = 1 << 20
PLACE = FilterPlace(
    "vbd3/1/51712", readonly=False, log=BoundedLog(logging.getLogger("filters"), "vbd3/1/51712")
)


def over(words: str, lower: Store | None = None) -> Store:
    return wrap(lower or MemoryStore(SIZE), parse_filters(words), PLACE)


def put(store: Store, offset: int, content: bytes) -> None:
    store.write(memoryview(content), offset)


def get(store: Store, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    store.readinto(memoryview(buffer), offset)
    return bytes(buffer)


def number_of(call: Callable[[], None]) -> int | None:
    """The errno that a call fails with."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


# ------------------------------------------------------------------ readonly, order


def test_readonly_is_served_by_an_engine_too() -> None:
    store = over("readonly")
    native = store.native
    assert native is not None
    assert native.readonly
    store.close()


def test_the_first_filter_is_next_to_the_guest() -> None:
    store = over("stats error,errno=ENOSPC")
    assert number_of(lambda: put(store, 0, bytes(512))) == errno.ENOSPC
    assert store.stats()["stats_write_errors"] == 1
    store.close()
    store = over("error,errno=ENOSPC stats")
    assert number_of(lambda: put(store, 0, bytes(512))) == errno.ENOSPC
    assert store.stats() == {}
    store.close()


# ------------------------------------------------------------------ cow


def cow(overlay: Path, lower: Store | None = None) -> Store:
    return over(f"cow,overlay={overlay}", lower)


def test_the_image_is_left_as_it_was(tmp_path: Path) -> None:
    lower = MemoryStore(SIZE)
    put(lower, 0, b"a" * SIZE)
    store = cow(tmp_path / "overlay", lower)
    put(store, CLUSTER + 512, b"b" * 512)
    store.zero(4 * CLUSTER - 512, 1024)
    assert get(lower, 0, SIZE) == b"a" * SIZE
    expected = bytearray(b"a" * SIZE)
    expected[CLUSTER + 512 : CLUSTER + 1024] = b"b" * 512
    expected[4 * CLUSTER - 512 : 4 * CLUSTER + 512] = bytes(1024)
    assert get(store, 0, SIZE) == expected
    store.close()


def test_an_overlay_is_reopened_after_an_orderly_end_without_a_flush(tmp_path: Path) -> None:
    store = cow(tmp_path / "overlay")
    put(store, 8192, b"b" * 4096)
    store.close()
    store = cow(tmp_path / "overlay")
    assert get(store, 8192, 4096) == b"b" * 4096
    store.close()


def test_an_overlay_takes_the_room_of_what_was_written(tmp_path: Path) -> None:
    store = cow(tmp_path / "overlay")
    put(store, SIZE - 4096, b"b" * 4096)
    store.flush()
    assert (tmp_path / "overlay").stat().st_blocks * 512 <= 32768
    assert (tmp_path / "overlay").stat().st_size >= SIZE
    store.close()


def test_bits_follow_their_clusters_to_stable_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power failure could leave, at each moment: no bit without its cluster."""
    store = cow(tmp_path / "overlay")
    store.flush()
    events: list[str] = []
    whole = os.pwritev

    def pwritev(fd: int, buffers: list[memoryview], offset: int) -> int:
        events.append("bits" if offset == 4096 else "cluster")
        return whole(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fdatasync", lambda _: events.append("sync"))
    put(store, 0, bytes(CLUSTER))
    store.flush()
    assert events == ["cluster", "sync", "bits", "sync"]
    events.clear()
    put(store, 0, bytes(CLUSTER))
    store.flush()
    assert events == ["cluster", "sync"]
    store.close()


def test_a_bit_that_came_during_the_sync_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cow(tmp_path / "overlay")
    put(store, 0, b"a" * CLUSTER)
    sync = os.fdatasync
    # Its cluster may not be part of that sync.
    monkeypatch.setattr(os, "fdatasync", lambda fd: (put(store, 8192, b"b" * CLUSTER), sync(fd)))
    store.flush()
    monkeypatch.undo()
    assert (tmp_path / "overlay").read_bytes()[4096] == 0b001
    store.flush()
    assert (tmp_path / "overlay").read_bytes()[4096] == 0b101
    store.close()


class Held(MemoryStore):
    """Its first read takes until the test says so."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.reading, self.go_on = threading.Event(), threading.Event()

    def readinto(self, buffer: Buffer, offset: int) -> None:
        if not self.reading.is_set():
            self.reading.set()
            assert self.go_on.wait(30)
        super().readinto(buffer, offset)


@pytest.mark.parametrize("count", [512, CLUSTER])
def test_two_queues_in_one_cluster_keep_both_writes(tmp_path: Path, count: int) -> None:
    """The old sectors that the first brings along must not undo what the second writes."""
    lower = Held()
    store = cow(tmp_path / "overlay", lower)
    first = threading.Thread(target=put, args=(store, 0, b"a" * 512))
    second = threading.Thread(target=put, args=(store, 512, b"b" * count))
    first.start()
    assert lower.reading.wait(30)
    second.start()
    second.join(0.2)
    lower.go_on.set()
    first.join()
    second.join()
    assert get(store, 0, 512 + count) == b"a" * 512 + b"b" * count
    store.close()


def test_what_was_flushed_survives_sigkill(tmp_path: Path) -> None:
    """A process writes stamped clusters and says which it has flushed, until it is killed."""
    program = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_block_filters import CLUSTER, Path, cow, put\n"
        "store = cow(Path(sys.argv[2]))\n"
        "for turn in range(1, 10**9):\n"
        "    put(store, turn % 200 * CLUSTER + 512, turn.to_bytes(4, 'little') * 128)\n"
        "    if turn % 3 == 0:\n"
        "        store.flush()\n"
        "        print(turn, flush=True)\n"
    )
    overlay = tmp_path / "overlay"
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(overlay)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        flushed = 0
        while flushed < 120:
            flushed = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        flushed = int(rest[-1]) if rest else flushed
    store = cow(overlay)
    for turn in range(max(flushed - 199, 1), flushed + 1):
        # The next round over the same cluster may have been on its way.
        stamp = int.from_bytes(get(store, turn % 200 * CLUSTER + 512, 4), "little")
        assert stamp in (turn, turn + 200), f"{turn} was flushed, {stamp} is there"
    store.close()


def test_an_overlay_belongs_to_one_disk_at_a_time(tmp_path: Path) -> None:
    store = cow(tmp_path / "overlay")
    with pytest.raises(DeviceError, match="in use by another disk"):
        cow(tmp_path / "overlay")
    store.close()
    cow(tmp_path / "overlay").close()


def test_an_overlay_of_another_disk_is_refused(tmp_path: Path) -> None:
    cow(tmp_path / "overlay").close()
    with pytest.raises(DeviceError, match=r"of a disk of 1048576 bytes; this one has 4096"):
        cow(tmp_path / "overlay", MemoryStore(4096))


@pytest.mark.parametrize("content", [b"x", bytes(8192), b"XENPYCOW", b"XENPYCOW" + b"\2" * 5000])
def test_what_is_no_overlay_is_not_touched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DeviceError, match="overlay"):
        cow(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content


def test_an_overlay_without_a_name_ends_with_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = over("cow")
    assert store.volatile
    put(store, 0, bytes(512))
    assert list(tmp_path.iterdir()) == []
    store.close()


# ------------------------------------------------------------------ error


def test_errors_hit_what_they_are_meant_for() -> None:
    store = over("error,operation=write,errno=ENOSPC,from=8K,to=16K")
    assert number_of(lambda: put(store, 8192, bytes(512))) == errno.ENOSPC
    assert number_of(lambda: put(store, 7680, bytes(1024))) == errno.ENOSPC
    assert number_of(lambda: put(store, 7680, bytes(512))) is None
    assert number_of(lambda: put(store, 16384, bytes(512))) is None
    assert number_of(store.flush) is None
    assert get(store, 8192, 512) == bytes(512)
    store.close()


def test_a_flush_that_was_made_to_fail_is_final() -> None:
    store = over("error,operation=flush,probability=0.5,seed=5")
    outcomes = [number_of(store.flush) for _ in range(20)]
    assert outcomes[0] is None
    first = outcomes.index(errno.EIO)
    assert set(outcomes[first:]) == {errno.EIO}
    store.close()


def test_the_same_seed_fails_the_same_calls(caplog: pytest.LogCaptureFixture) -> None:
    def run(words: str) -> list[int | None]:
        store = over(words)
        outcomes = [number_of(lambda: put(store, 0, bytes(512))) for _ in range(100)]
        store.close()
        return outcomes

    with caplog.at_level(logging.INFO):
        chance = run("error,probability=0.3")
    (seed,) = re.findall(r"seed=(\d+)", caplog.text)
    assert run(f"error,probability=0.3,seed={seed}") == chance
    assert {*chance} == {None, errno.EIO}


# ------------------------------------------------------------------ drop


def test_a_disk_that_says_it_has_written() -> None:
    store = over("drop,operation=write,from=8K,to=16K")
    put(store, 7680, b"x" * 512)
    put(store, 8192, b"x" * 512)
    assert get(store, 7680, 1024) == b"x" * 512 + bytes(512)
    store.close()


def test_a_flush_that_flushes_nothing_succeeds_and_reads_are_never_lost() -> None:
    class Broken(MemoryStore):
        def flush(self) -> None:
            raise OSError(errno.EIO, "lost")

    lower = Broken(SIZE)
    put(lower, 0, b"x" * 512)
    store = over("drop", lower)
    store.flush()
    store.discard(0, 512)
    store.zero(0, 512)
    put(store, 0, bytes(512))
    assert get(store, 0, 512) == b"x" * 512
    store.close()
    with pytest.raises(ValueError, match="operation is 'read'; give one of all, write, flush"):
        parse_filters("drop,operation=read")


# ------------------------------------------------------------------ python


CODE = """
from xenpy.drivers.block.filters.base import Filter

class Louder(Filter):
    def __init__(self, lower, by="1"):
        super().__init__(lower)
        self.by = int(by)
    def readv(self, buffers, offset):
        super().readv(buffers, offset)
        for buffer in buffers:
            buffer[:] = bytes(byte + self.by for byte in buffer)

class Other:
    pass
"""


def test_a_filter_of_the_operator_s_own(tmp_path: Path) -> None:
    path = tmp_path / "louder.py"
    path.write_text(CODE)
    words = f"python,class={path}:Louder,by=5"
    with pytest.raises(DeviceError, match=r"a python filter runs code .* allow it with python=1"):
        over(words)
    allowed = replace(PLACE, python=True)
    store = wrap(MemoryStore(SIZE), parse_filters(words), allowed)
    assert get(store, 0, 512) == b"\5" * 512
    assert store.native is None
    store.close()
    for words, part in (
        (f"python,class={path}:Other", "no subclass of xenpy.drivers.block.filters.base.Filter"),
        (f"python,class={path}:Louder,to=5", "unexpected keyword argument 'to'"),
        (f"python,class={path}:Louder,by=much", "ValueError"),
        ("python,class=louder.py:Louder", "not an absolute path"),
    ):
        with pytest.raises(DeviceError, match=part):
            wrap(MemoryStore(SIZE), parse_filters(words), allowed)


# ------------------------------------------------------------------ delay, rate


def test_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    store = over("delay,read=1,write=20,flush=300")
    get(store, 0, 512)
    put(store, 0, bytes(512))
    store.discard(0, 512)
    store.flush()
    assert slept == [0.001, 0.02, 0.02, 0.3]
    store.close()


def test_a_bucket_lets_a_rate_through() -> None:
    now = [100.0]
    bucket = Bucket(1000.0, lambda: now[0])
    assert bucket.take(100) == pytest.approx(0.1)
    assert bucket.take(50) == pytest.approx(0.15), "whoever comes next waits longer"
    now[0] = 200.0
    assert bucket.take(100) == 0.0, "a tenth of a second's may gather"
    assert bucket.take(100) == pytest.approx(0.1), "and no more"


def test_the_rate_limits_bytes_and_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    store = over("rate,bps=1M,iops=10")
    for _ in range(20):
        put(store, 0, bytes(512))
    assert now[0] - 100.0 == pytest.approx(2.0)
    for _ in range(3):
        get(store, 0, SIZE)
    assert now[0] - 100.0 == pytest.approx(5.0, abs=0.2)
    store.close()


# ------------------------------------------------------------------ log, stats


def test_a_log_has_a_line_for_each_call(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = over(f"log,path={path} error,operation=write,from=1K")
    put(store, 0, bytes(512))
    number_of(lambda: put(store, 1024, bytes(512)))
    get(store, 512, 1024)
    store.flush()
    store.close()
    assert path.stat().st_mode & 0o777 == 0o600
    lines = [line.split() for line in path.read_text().splitlines()]
    assert {line[1] for line in lines} == {"vbd3/1/51712"}
    assert [(line[2], line[3] if len(line) > 6 else "", line[-1]) for line in lines] == [
        ("write", "0+512", "ok"), ("write", "1024+512", "EIO"), ("read", "512+1024", "ok"),
        ("flush", "", "ok"),
    ]  # fmt: skip


def test_a_log_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    store = over(f"log,path={path},limit=1000")
    for _ in range(100):
        put(store, 0, bytes(512))
    store.close()
    assert path.stat().st_size < 1100
    assert path.read_text().endswith("the log is full\n")


def test_a_log_that_cannot_be_written_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = over(f"log,path={tmp_path}/log")

    def full(_fd: int, _line: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    put(store, 0, b"x" * 512)
    monkeypatch.undo()
    assert get(store, 0, 512) == b"x" * 512
    store.close()
    assert (tmp_path / "log").read_text() == ""


def test_a_log_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r".+"):
        over(f"log,path={tmp_path}/log")
    assert not (tmp_path / "elsewhere").exists()


def test_stats_count_calls_bytes_errors_and_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.000040, 1.0, 1.0000015, 2.0, 12.0, 13.0, 13.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    store = over("stats error,operation=flush")
    get(store, 0, 4096)
    get(store, 0, 512)
    put(store, 0, bytes(512))
    number_of(store.flush)
    assert store.stats() == {
        "stats_read_calls": 2, "stats_read_bytes": 4608,
        "stats_read_us_below_64": 1, "stats_read_us_below_2": 1,
        "stats_write_calls": 1, "stats_write_bytes": 512, "stats_write_us_below_16777216": 1,
        "stats_flush_calls": 1, "stats_flush_errors": 1, "stats_flush_us_below_524288": 1,
    }  # fmt: skip
    store.close()


def test_two_stats_are_told_apart_by_name() -> None:
    store = over("stats,name=above stats,name=below")
    put(store, 0, bytes(512))
    assert store.stats()["above_write_calls"] == store.stats()["below_write_calls"] == 1
    store.close()


# ------------------------------------------------------------------ replay


def test_the_nth_request_of_a_kind_gets_the_nth_answer(tmp_path: Path) -> None:
    seen = [
        Seen(OP_READ, 8, 2, RSP_ERROR, taken=2, answered=3),
        # Another ring's, which was first: a capture is in order for each ring alone.
        Seen(OP_READ, 8, 2, taken=1, answered=9, ring=1),
        Seen(OP_WRITE, 8, 2, RSP_ERROR),
        Seen(OP_DISCARD, 8, 2, RSP_EOPNOTSUPP),
        # As a hostile backend has it.
        Seen(OP_READ, 10, 1, -77),
        Seen(OP_READ, SIZE, 1, RSP_ERROR),
        Seen(OP_WRITE_BARRIER, 0, 1, RSP_ERROR),
        Seen(255, status=RSP_EOPNOTSUPP),
        Seen(OP_INDIRECT, 8, status=RSP_ERROR),
        Seen(OP_FLUSH_DISKCACHE, status=RSP_ERROR),
    ]
    write_capture(tmp_path / "capture", *seen)
    store = over(f"replay,capture={tmp_path}/capture,latency=no")
    for expected in (None, errno.EIO, None):
        assert number_of(lambda: get(store, 4096, 1024)) == expected
    assert number_of(lambda: get(store, 4096, 512)) is None, "another length"
    for expected in (errno.EIO, None):
        assert number_of(lambda: put(store, 4096, b"x" * 1024)) == expected
    assert get(store, 4096, 1024) == b"x" * 1024
    for expected in (errno.EOPNOTSUPP, None):
        assert number_of(lambda: store.discard(4096, 1024)) == expected
    assert number_of(lambda: get(store, 5120, 512)) == errno.EIO
    assert number_of(lambda: put(store, 0, bytes(512))) is None
    assert number_of(store.flush) == errno.EIO
    assert store.stats() == {"replay_answers": 6, "replay_others": 6}
    store.close()


def test_an_answer_takes_as_long_as_in_the_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_capture(
        tmp_path / "capture",
        # Three that one queue has taken at once, and what another one did meanwhile.
        Seen(OP_READ, 0, 1, taken=100, answered=110),
        Seen(OP_READ, 1, 1, RSP_ERROR, taken=100, answered=130),
        Seen(OP_WRITE, 2, 1, taken=100, answered=131),
        Seen(OP_READ, 3, 1, taken=90, answered=160, ring=1),
        Seen(OP_READ, 4, 1, taken=200, answered=240),
        # Longer than a disconnect may take, and a clock that goes backwards.
        Seen(OP_READ, 5, 1, taken=300, answered=900_000),
        Seen(OP_READ, 6, 1, taken=950_000, answered=940_000),
    )
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    store = over(f"replay,capture={tmp_path}/capture")
    get(store, 0, 512)
    assert number_of(lambda: get(store, 512, 512)) == errno.EIO
    put(store, 1024, bytes(512))
    for number in range(3, 8):
        get(store, number * 512, 512)
    assert slept == pytest.approx([0.01, 0.02, 0.001, 0.07, 0.04, 60.0])
    store.close()


def test_a_slow_store_is_not_made_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([5.0, 5.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(time, "sleep", pytest.fail)
    write_capture(tmp_path / "capture", Seen(OP_READ, 0, 1, taken=100, answered=600))
    store = over(f"replay,capture={tmp_path}/capture")
    get(store, 0, 512)
    store.close()


def test_what_is_no_capture_of_a_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    words = f"replay,capture={path}"
    with pytest.raises(FileNotFoundError):
        over(words)
    path.write_bytes(b"something else\n")
    with pytest.raises(DeviceError, match="that is no capture"):
        over(words)
    write_capture(path, head=replace(HEAD, device="console/3/0", driver="console"))
    with pytest.raises(DeviceError, match="console/3/0, which is no disk"):
        over(words)
    write_capture(path, Seen(OP_READ, 0, 1))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DeviceError, match="cut off"):
        over(words)
    for wrong, part in (
        ("replay", "give capture=/an/absolute/one"),
        ("replay,capture=here", "give capture=/an/absolute/one"),
        (f"{words},latency=some", "give one of yes, no"),
        (f"{words},speed=2", "it takes capture, latency"),
    ):
        with pytest.raises(ValueError, match=part):
            over(wrong)
