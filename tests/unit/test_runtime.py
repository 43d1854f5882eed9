# SPDX-License-Identifier: MIT
"""A queue's thread: starts, serves, unmasks after the work, stops, fails, and lets go."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import pytest

from xenpy.errors import PeerError, XenError
from xenpy.runtime import (
    SPURIOUS_ALLOWED,
    Deferred,
    Queue,
    QueueThread,
    StopSignal,
    in_thread,
)
from xenpy.types import Port


class Channels:
    """A port made of an eventfd that is masked while pending, as the kernel's are."""

    def __init__(self, journal: list[str]) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.journal = journal

    def fileno(self) -> int:
        return self.fd

    def pending(self, limit: int = 64) -> list[Port]:
        os.eventfd_read(self.fd)
        return [Port(5)]

    def notify(self, port: Port) -> None:
        raise AssertionError("nobody is notified here")

    def unmask(self, ports: Sequence[Port]) -> None:
        assert ports == [Port(5)]
        self.journal.append("unmask")


class FakeQueue(Queue):
    def __init__(self) -> None:
        self.journal: list[str] = []
        self.channels: Channels = Channels(self.journal)
        self.work: list[int] = []
        self.fail_open: Exception | None = None
        self.fail_service: Exception | None = None
        self.served = threading.Event()

    def open(self) -> None:
        self.journal.append("open")
        if self.fail_open is not None:
            raise self.fail_open

    def service(self) -> int:
        if self.fail_service is not None:
            raise self.fail_service
        if self.work:
            self.journal.append("served")
            return self.work.pop()
        self.served.set()
        return 0

    def close(self) -> None:
        self.journal.append(f"close in {threading.current_thread().name}")
        os.close(self.channels.fd)


def run_queue(
    queue: FakeQueue, body: Callable[[QueueThread], object] | None = None
) -> list[Exception]:
    failures: list[Exception] = []

    async def main() -> None:
        failed = asyncio.Event()

        def on_failure(error: Exception) -> None:
            failures.append(error)
            failed.set()

        thread = QueueThread(queue, "vbd3/1/51712", on_failure)
        await thread.start()
        if body is not None:
            await asyncio.to_thread(body, thread)
        if queue.fail_service is not None:
            await failed.wait()
        await thread.stop()

    asyncio.run(main())
    return failures


def test_requests_published_before_the_bind_are_served() -> None:
    queue = FakeQueue()
    queue.work = [3, 2]
    assert run_queue(queue) == []
    assert queue.journal[:3] == ["open", "served", "served"]


def test_the_port_is_unmasked_after_the_work() -> None:
    queue = FakeQueue()

    def body(_: QueueThread) -> None:
        assert queue.served.wait(5)
        queue.served.clear()
        queue.work = [1]
        os.eventfd_write(queue.channels.fd, 1)
        assert queue.served.wait(5)

    run_queue(queue, body)
    assert queue.journal.index("served") < queue.journal.index("unmask")


def test_the_thread_itself_lets_go() -> None:
    queue = FakeQueue()
    run_queue(queue)
    assert queue.journal[-1] == "close in vbd3/1/51712"


def test_an_open_that_fails_is_raised_and_closed() -> None:
    queue = FakeQueue()
    queue.fail_open = PeerError("no such ring")
    with pytest.raises(PeerError, match="no such ring"):
        run_queue(queue)
    assert queue.journal == ["open", "close in vbd3/1/51712"]


def test_a_failure_is_reported_after_the_queue_let_go() -> None:
    queue = FakeQueue()
    queue.fail_service = PeerError("req_prod jumped")
    failures = run_queue(queue)
    assert [str(error) for error in failures] == ["req_prod jumped"]
    assert queue.journal[-1].startswith("close")


def test_a_storm_of_empty_events_is_held_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """E1: past the allowance, events for nothing leave the port masked, longer each time."""
    queue = FakeQueue()
    waits: list[float] = []

    def held_off(_: StopSignal, seconds: float) -> bool:
        waits.append(seconds)
        queue.journal.append("held off")
        return False

    monkeypatch.setattr(StopSignal, "wait", held_off)

    def body(_: QueueThread) -> None:
        # The first look is at the ring as it was found.
        for _ in range(SPURIOUS_ALLOWED + 9):
            assert queue.served.wait(5)
            queue.served.clear()
            os.eventfd_write(queue.channels.fd, 1)
        assert queue.served.wait(5)

    run_queue(queue, body)
    assert waits[:8] == [0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05, 0.05]
    steps = [step for step in queue.journal if step in ("held off", "unmask")]
    assert steps[: SPURIOUS_ALLOWED + 4] == (
        ["unmask"] * SPURIOUS_ALLOWED + ["held off", "unmask"] * 2
    )


def test_work_ends_a_hold_off(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = FakeQueue()
    waits: list[float] = []
    monkeypatch.setattr(StopSignal, "wait", lambda _, seconds: waits.append(seconds))

    def body(_: QueueThread) -> None:
        for turn in range(2 * SPURIOUS_ALLOWED):
            assert queue.served.wait(5)
            queue.served.clear()
            if turn == SPURIOUS_ALLOWED - 1:
                queue.work = [1]
            os.eventfd_write(queue.channels.fd, 1)
        assert queue.served.wait(5)

    run_queue(queue, body)
    assert waits == []


def test_a_stop_lasts_until_the_thread_has_let_go() -> None:
    gate = threading.Event()

    class Slow(FakeQueue):
        def close(self) -> None:
            gate.wait(5)
            super().close()

    queue = Slow()

    async def main() -> None:
        thread = QueueThread(queue, "vbd3/1/51712", lambda _: None)
        await thread.start()
        stopping = asyncio.create_task(thread.stop())
        await asyncio.wait([stopping], timeout=0.1)
        assert not stopping.done()
        gate.set()
        await stopping
        assert queue.journal[-1] == "close in vbd3/1/51712"
        assert "vbd3/1/51712" not in {thread.name for thread in threading.enumerate()}

    asyncio.run(main())


def test_a_stop_during_a_hold_off_is_heard_at_once() -> None:
    queue = FakeQueue()

    async def main() -> None:
        thread = QueueThread(queue, "t", lambda _: None)
        await thread.start()
        for _ in range(SPURIOUS_ALLOWED + 8):
            await asyncio.to_thread(queue.served.wait, 5)
            queue.served.clear()
            os.eventfd_write(queue.channels.fd, 1)
        await asyncio.wait_for(thread.stop(), 5)
        await thread.stop()

    asyncio.run(main())


def test_a_storm_is_held_off_by_a_daemon_of_many_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """select(2) knows 1024 descriptors; a disk has five."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    eventfd = os.eventfd

    def high(initial: int, flags: int) -> int:
        low = eventfd(initial, flags)
        try:
            return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1100)
        finally:
            os.close(low)

    queue = FakeQueue()

    def body(_: QueueThread) -> None:
        for _ in range(SPURIOUS_ALLOWED + 4):
            assert queue.served.wait(5)
            queue.served.clear()
            os.eventfd_write(queue.channels.fd, 1)

    monkeypatch.setattr(os, "eventfd", high)
    try:
        assert run_queue(queue, body) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thread_that_cannot_be_started_is_stopped_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No more threads allowed: the device is refused, and can be closed."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        thread = QueueThread(FakeQueue(), "t", lambda _: None)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                await thread.start()
        await asyncio.wait_for(thread.stop(), 5)
        # The queue's own port is still there.
        assert len(os.listdir("/proc/self/fd")) == descriptors + 1

    asyncio.run(main())


def test_a_call_that_hangs_holds_up_no_other() -> None:
    """More than any pool of threads has: each has a thread of its own."""
    gate = threading.Event()

    async def main() -> None:
        hung = [asyncio.create_task(in_thread(lambda: gate.wait(30), "hung")) for _ in range(64)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(in_thread(lambda: 7, "quick"), 10) == 7
        gate.set()
        await asyncio.gather(*hung)

    asyncio.run(main())


def test_a_call_raises_what_it_raises() -> None:
    def fail() -> None:
        raise PeerError("no")

    async def main() -> None:
        with pytest.raises(PeerError, match="no"):
            await in_thread(fail, "fails")

    asyncio.run(main())


def test_a_result_that_nobody_waits_for_any_more_is_given_back() -> None:
    gate = threading.Event()
    given_back: list[int] = []

    def call() -> int:
        gate.wait(30)
        return 7

    async def main() -> None:
        task = asyncio.create_task(in_thread(call, "slow", given_back.append))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gate.set()
        while not given_back:
            await asyncio.sleep(0.005)

    asyncio.run(main())
    assert given_back == [7]


def test_a_result_that_comes_together_with_the_cancellation_is_given_back() -> None:
    """In one turn of the loop: nobody waits any more, though nothing was left to cancel."""
    given_back: list[int] = []

    async def main() -> None:
        task = asyncio.create_task(in_thread(lambda: 7, "quick", given_back.append))
        await asyncio.sleep(0)
        for thread in threading.enumerate():
            if thread.name == "quick":
                thread.join()
        # The result is on its way by now, and comes first.
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(main())
    assert given_back == [7]


HANGS = """
import asyncio, threading
from xenpy.runtime import in_thread

async def main():
    asyncio.create_task(in_thread(threading.Event().wait, "hung"))
    await asyncio.sleep(0)

asyncio.run(main())
print("ended")
"""


def test_a_process_ends_although_a_call_hangs() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.stdout, ran.returncode) == ("ended\n", 0), ran.stderr


class Viewed:
    def __init__(self) -> None:
        self.viewed = True
        self.closed = False

    def close(self) -> None:
        if self.viewed:
            raise BufferError("a view lives")
        self.closed = True


def test_an_unmap_under_a_view_is_deferred_counted_and_done_later() -> None:
    deferred = Deferred()
    mapping = Viewed()
    assert not deferred.close(mapping, "vbd3/1/51712")
    assert len(deferred) == 1
    assert deferred.retry() == 1
    mapping.viewed = False
    assert deferred.retry() == 0
    assert mapping.closed
    assert len(deferred) == 0


def test_one_thread_at_a_time_closes() -> None:
    """Two that unmapped the same pages could unmap what somebody mapped there in between."""
    entered, gate = threading.Event(), threading.Event()

    class Slow(Viewed):
        def close(self) -> None:
            super().close()
            entered.set()
            gate.wait(5)

    deferred = Deferred()
    mapping = Slow()
    deferred.close(mapping, "t")
    mapping.viewed = False
    retrying = threading.Thread(target=deferred.retry)
    retrying.start()
    assert entered.wait(5)
    other = threading.Thread(target=deferred.close, args=(Viewed(), "t"))
    other.start()
    other.join(0.1)
    assert other.is_alive()
    gate.set()
    other.join()
    retrying.join()
    assert len(deferred) == 1


def test_an_unmap_that_fails_for_good_ends_nothing_else() -> None:
    class Broken(Viewed):
        def close(self) -> None:
            super().close()
            raise XenError(errno.EINVAL, "gnttab_unmap")

    deferred = Deferred()
    broken, sound = Broken(), Viewed()
    for mapping in (broken, sound):
        deferred.close(mapping, "t")
        mapping.viewed = False
    assert deferred.retry() == 0
    assert sound.closed
