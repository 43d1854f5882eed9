# SPDX-License-Identifier: MIT
"""Both taps, from a ring to a capture and back: one suite for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `env`, a `FrameworkEnvironment`.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE
from conformance.block_front_suite import (
    a_backend,
    a_disk,
    acted,
    an_image,
    connected,
    device,
    nothing_left,  # noqa: F401 - a fixture
    opened,
)
from conformance.framework_front import KIND, FrameworkEnvironment
from conformance.model_backend import OFFERS, ModelBackend
from conformance.shown import shown
from xenpy.capture import Capture, Head, Tail, Writer, entry
from xenpy.control import CLIENTS_LIMIT, Answer, ask
from xenpy.drivers.block.back import BlockBackend
from xenpy.drivers.block.front import BlockDevice
from xenpy.drivers.block.front_link import Wishes
from xenpy.drivers.block.front_queue import Shape
from xenpy.drivers.block.protocol import OP_DISCARD, OP_READ, OP_WRITE
from xenpy.drivers.block.replay import Wanted, replay, wanted
from xenpy.drivers.block.trace_text import decode, peek
from xenpy.errors import XenError
from xenpy.passive_tap import PassiveTap
from xenpy.service import Service
from xenpy.trace import RECORD, TraceReader
from xenpy.types import PAGE_SIZE
from xenpy.xenstore import Store

SIZE = 1 << 20
SECTORS = SIZE // 512
NAMED = Wishes(ring_page_order=0, data_pages=64)

Fields = Mapping[str, object]


@pytest.fixture(params=["native", "callback", "batch"])
def tier(request: pytest.FixtureRequest) -> str:
    """Which engine serves the disk."""
    return str(request.param)


class Daemon:
    """`xenpy serve block` with its socket, in this very loop."""

    def __init__(self, env: FrameworkEnvironment, store: Store, rundir: Path, tier: str) -> None:
        options = {"queues": "2", "tier": tier}
        self.env = env
        self.store = store
        self.rundir = rundir
        self.service = Service(
            store, KIND, BlockBackend, xen=env.back_xen(), domid=env.back_domid, options=options
        )

    async def ask(self, nodes: ModelBackend) -> Answer:
        return await asyncio.to_thread(ask, name_of(nodes), self.rundir)


def name_of(nodes: ModelBackend) -> str:
    return "/".join(nodes.back.split("/")[-3:])


@asynccontextmanager
async def serving(
    env: FrameworkEnvironment, rundir: Path, tier: str = "native"
) -> AsyncIterator[Daemon]:
    async with opened(env) as store:
        daemon = Daemon(env, store, rundir, tier)
        async with shown(daemon.service, "block", rundir):
            yield daemon


@asynccontextmanager
async def our_disk(
    daemon: Daemon, image: Path, wishes: Wishes = NAMED, size: int = SIZE
) -> AsyncIterator[tuple[ModelBackend, BlockDevice]]:
    image.write_bytes(bytes(size))
    nodes = await an_image(daemon.env, daemon.store, image)
    try:
        async with device(nodes, wishes, timeout=PATIENCE) as disk:
            yield nodes, disk
    finally:
        await nodes.close()


@asynccontextmanager
async def tapped(daemon: Daemon, nodes: ModelBackend) -> AsyncIterator[Tap]:
    async with AsyncExitStack() as held:
        answer = held.enter_context(await daemon.ask(nodes))
        readers = [held.enter_context(TraceReader(fd)) for fd in answer.fds]
        yield Tap(answer, readers)


class Tap:
    """What `xenpy tap` does with its answer."""

    def __init__(self, answer: Answer, readers: Sequence[TraceReader]) -> None:
        self.answer = answer
        self.readers = readers

    def lines(self) -> list[Fields]:
        return [
            entry(ring, record, 0, decode(self.answer.layout, record))
            for ring, reader in enumerate(self.readers)
            for record in reader.read()
        ]

    def lost(self) -> int:
        return sum(reader.lost for reader in self.readers)


async def status_of(disk: BlockDevice, shape: Shape) -> str:
    answer = await disk.front.link.queues[0].repeat(shape)
    try:
        await answer
    except XenError as error:
        return str(error.strerror)
    return "okay"


async def work(disk: BlockDevice) -> None:
    """One of everything, right and wrong."""
    await disk.pwrite(b"a" * PAGE_SIZE * 3 + b"b" * 512, 4096)
    await disk.pread(512, 1024)
    await disk.flush()
    await disk.discard(1 << 16, 1 << 16)
    await disk.pwrite(bytes(24 * PAGE_SIZE), 0)
    for shape in WRONG:
        assert await status_of(disk, shape) != "okay"


WRONG = (
    Shape(OP_READ, SECTORS, [(0, 7)], 1),
    Shape(OP_WRITE, 8, [(5, 2)], 1),
    Shape(OP_WRITE, 0, [(0, 7)] * 11, 12),
    Shape(OP_READ, 0, [], 0),
    Shape(4, 0, [(0, 7)], 1),
    Shape(OP_DISCARD, 1 << 63, sectors=1 << 63),
    Shape(255, 0, [], 255),
)

EXPECTED = [
    ("write", 8, 25, "okay"), ("read", 2, 1, "okay"), ("flush", 0, 0, "okay"),
    ("discard", 128, 128, "okay"), ("write", 0, 192, "okay"),
    ("read", SECTORS, 8, "error"), ("write", 8, 0, "error"), ("write", 0, 0, "error"),
    ("read", 0, 0, "error"), ("operation-4", 0, 0, "eopnotsupp"),
    ("discard", 1 << 63, 1 << 63, "error"), ("operation-255", 0, 0, "eopnotsupp"),
]  # fmt: skip


@acted
async def test_what_is_tapped_is_what_was_asked_for(
    env: FrameworkEnvironment, tmp_path: Path, tier: str
) -> None:
    async with (
        serving(env, tmp_path, tier) as daemon,
        our_disk(daemon, tmp_path / "disk.img") as (nodes, disk),
    ):
        await disk.pread(512, 0)
        async with tapped(daemon, nodes) as tap:
            assert (tap.answer.driver, tap.answer.layout) == ("block", "x86_64-abi")
            assert tap.lines() == [], "only what comes from now on"
            await work(disk)
            lines = tap.lines()
            assert tap.lost() == 0
    told = [(one["op"], one["sector"], one["sectors"], one["status"]) for one in lines]
    # What is refused has as many sectors as whoever refused it had counted.
    assert [row[:2] for row in told] == [row[:2] for row in EXPECTED]
    assert [row[3] for row in told] == [row[3] for row in EXPECTED]
    assert told[:5] == EXPECTED[:5]
    assert [one["index"] for one in lines] == list(range(1, 1 + len(lines)))
    assert lines[0]["nr_segments"] == 4
    segments = lines[0]["segments"]
    assert isinstance(segments, list)
    assert [one[1:] for one in segments] == [[0, 7], [0, 7], [0, 7], [0, 0]]
    assert lines[4]["nr_segments"] == 24
    assert "indirect" in lines[4]
    times = [one["time"] for one in lines]
    assert times == sorted(times)
    for one in lines:
        latency = one["latency"]
        assert isinstance(latency, float)
        assert 0.0 < latency < PATIENCE
        assert str(one["response"]).startswith(int(str(one["id"])).to_bytes(8, "little").hex())


@acted
async def test_it_costs_nothing_while_nobody_looks(
    env: FrameworkEnvironment, tmp_path: Path, tier: str
) -> None:
    """Nothing is recorded, and no memory taken, before, between and after."""
    async with (
        serving(env, tmp_path, tier) as daemon,
        our_disk(daemon, tmp_path / "disk.img") as (nodes, disk),
    ):
        life = next(iter(daemon.service.devices.values()))
        recorded = life.recorded()
        assert recorded is not None
        (trace,) = recorded.traces
        reader = TraceReader(trace.fd)
        await disk.pread(512, 0)
        assert reader.read() == []
        async with tapped(daemon, nodes) as first:
            async with tapped(daemon, nodes) as second:
                await disk.pread(512, 512)
                assert len(first.lines()) == len(second.lines()) == 1
            await disk.pread(512, 1024)
            assert len(first.lines()) == 1
        async with asyncio.timeout(PATIENCE):
            while trace.taken():
                await asyncio.sleep(0.01)
        await disk.pread(512, 1536)
        assert len(reader.read()) == 2
        reader.close()
    assert recorded.traces[0].closed


@acted
async def test_every_ring_is_tapped(env: FrameworkEnvironment, tmp_path: Path, tier: str) -> None:
    wishes = Wishes(queues=2, ring_page_order=1, data_pages=64)
    async with (
        serving(env, tmp_path, tier) as daemon,
        our_disk(daemon, tmp_path / "disk.img", wishes) as (nodes, disk),
        tapped(daemon, nodes) as tap,
    ):
        assert tap.answer.rings == 2
        await asyncio.gather(*(disk.pread(512, n * 512) for n in range(64)))
        lines = tap.lines()
        assert {one["ring"] for one in lines} == {0, 1}
        assert sorted(int(str(one["sector"])) for one in lines) == list(range(64))


@acted
async def test_a_tap_ends_with_the_connection(
    env: FrameworkEnvironment, tmp_path: Path, tier: str
) -> None:
    async with serving(env, tmp_path, tier) as daemon, AsyncExitStack() as held:
        async with our_disk(daemon, tmp_path / "disk.img") as (nodes, disk):
            tap = await held.enter_async_context(tapped(daemon, nodes))
            await disk.flush()
        assert all(reader.ended for reader in tap.readers)
        assert len(tap.lines()) == 1, "what was recorded before the end is still there"


def captured(tap: Tap) -> tuple[Capture, list[Wanted]]:
    """Written to a file, and read again."""
    file = io.BytesIO()
    head = Head("vbd3/1/51712", "block", tap.answer.layout, tap.answer.rings)
    writer = Writer(file, head)
    count = 0
    for ring, reader in enumerate(tap.readers):
        while records := reader.read_raw():
            writer.add(ring, records)
            count += len(records) // RECORD.size
    writer.end(Tail(count, tap.lost(), 1.0))
    file.seek(0)
    capture = Capture(file)
    assert capture.head == head
    requests = [wanted(capture.head.layout, record) for _, record in capture]
    assert capture.tail == Tail(len(requests), 0, 1.0)
    return capture, requests


@acted
async def test_a_capture_is_answered_the_same_by_another_disk(
    env: FrameworkEnvironment, tmp_path: Path, tier: str
) -> None:
    async with serving(env, tmp_path, tier) as daemon:
        async with (
            our_disk(daemon, tmp_path / "disk.img") as (nodes, disk),
            tapped(daemon, nodes) as tap,
        ):
            await work(disk)
            await disk.barrier()
            capture, requests = captured(tap)
        assert (capture.head.exact, len(requests)) == (True, len(EXPECTED) + 1)
        async with our_disk(daemon, tmp_path / "other.img") as (nodes, disk):
            async with tapped(daemon, nodes) as tap:
                done = await replay(disk, requests, depth=1, pace=False)
                again = tap.lines()
            assert (done.requests, done.same, done.examples) == (len(requests), len(requests), [])
            # The same requests, but for whose pages they name and what the frontend calls them.
            kept = ("op", "sector", "sectors", "nr_segments", "status", "flag")
            for one, other in zip(requests, again, strict=True):
                assert {name: one.fields.get(name) for name in kept} == {
                    name: other.get(name) for name in kept
                }
            pattern = (8).to_bytes(8, "little")
            assert await disk.pread(512, 24 * PAGE_SIZE) == bytes(512)
            assert (await disk.pread(512, 0))[:8] == bytes(8) != pattern
        async with our_disk(daemon, tmp_path / "small.img", size=SIZE // 16) as (_, disk):
            done = await replay(disk, requests, depth=8, pace=True)
            assert done.requests - done.same == 2, done
            assert {one.request.fields["op"] for one in done.examples} == {"discard", "write"}
            assert {one.status for one in done.examples} == {"error"}


@acted
async def test_whoever_asks_for_nonsense_is_told(env: FrameworkEnvironment, tmp_path: Path) -> None:
    async with (
        serving(env, tmp_path) as daemon,
        our_disk(daemon, tmp_path / "disk.img") as (nodes, disk),
    ):
        path = tmp_path / f"backend-{KIND}.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        for line in (b"\n", b"tap\n", b"[]\n", b'{"tap": 3}\n', b"\xff\n", b"{" * 5000):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(str(path))
                client.sendall(line)
                answer = await asyncio.to_thread(client.recv, 4096)
                assert b"one line is expected" in answer
        wrong = name_of(nodes).replace("51712", "51728")
        with pytest.raises(XenError, match=f"there are: {name_of(nodes)}"):
            await asyncio.to_thread(ask, wrong, tmp_path)
        with pytest.raises(XenError, match="no xenpy daemon serves vkb here"):
            await asyncio.to_thread(ask, "vkb/1/0", tmp_path)
        with pytest.raises(XenError, match="no xenpy daemon"):
            await asyncio.to_thread(ask, name_of(nodes), tmp_path / "nowhere")
        # More clients than there is room for: the rest are sent away, nobody waits.
        async with AsyncExitStack() as held:
            for _ in range(CLIENTS_LIMIT):
                held.enter_context(await daemon.ask(nodes))
            with pytest.raises(XenError, match=f"{CLIENTS_LIMIT} taps at once"):
                await daemon.ask(nodes)
            await disk.pread(512, 0)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    with await daemon.ask(nodes):
                        break
                except XenError:
                    await asyncio.sleep(0.01)


@acted
async def test_an_end_of_the_daemon_is_seen(env: FrameworkEnvironment, tmp_path: Path) -> None:
    async with AsyncExitStack() as held:
        async with (
            serving(env, tmp_path) as daemon,
            our_disk(daemon, tmp_path / "disk.img") as (nodes, _),
        ):
            answer = held.enter_context(await daemon.ask(nodes))
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(answer.fileno(), gone.set)
        async with asyncio.timeout(PATIENCE):
            await gone.wait()
        loop.remove_reader(answer.fileno())
    assert not (tmp_path / f"backend-{KIND}.sock").exists()


@acted
async def test_a_daemon_without_a_socket_serves_all_the_same(
    env: FrameworkEnvironment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rundir = tmp_path / "run"
    (rundir / f"backend-{KIND}.sock").mkdir(parents=True)
    async with (
        serving(env, rundir) as daemon,
        our_disk(daemon, tmp_path / "disk.img") as (nodes, disk),
    ):
        await disk.pread(512, 0)
        with pytest.raises(XenError, match="no xenpy daemon"):
            await daemon.ask(nodes)
    assert "nobody can tap" in caplog.text


# ------------------------------------------------------------------ passive


@asynccontextmanager
async def peeked(
    env: FrameworkEnvironment, backend: ModelBackend, interval: int = 100_000
) -> AsyncIterator[PassiveTap]:
    async with PassiveTap(
        backend.store, name_of(backend), peek, interval, env.back_xen().open_grants
    ) as tap:
        yield tap


@acted
async def test_a_passive_tap_sees_both_halves_of_others(
    env: FrameworkEnvironment, tmp_path: Path
) -> None:
    async with connected(env, OFFERS) as (backend, disk), peeked(env, backend) as tap:
        assert (tap.peeked.name, len(tap.peeked.refs)) == ("x86_64-abi", 1)
        call = asyncio.create_task(disk.pwrite(b"x" * 3 * 512, 7 * 512))
        (request,) = await backend.take()
        assert await tap.look() == []
        backend.execute(request)
        backend.answer(request)
        await call
        ((ring, record),) = await tap.look()
        fields = decode(tap.peeked.name, record)
        assert ring == 0
        assert {name: fields[name] for name in ("op", "sector", "sectors", "status")} == {
            "op": "write", "sector": 7, "sectors": 3, "status": "okay",
        }  # fmt: skip
        assert record.taken < record.answered
        assert (tap.asked, tap.lost) == (1, 0)
        # And what nobody looks at is lost: more than a ring of it.
        async with backend.serving():
            for number in range(40):
                await disk.pread(512, number * 512)
        await tap.look()
        assert tap.asked == 41
        assert 0 < tap.lost <= 40


@acted
async def test_a_passive_tap_gives_the_rings_back_when_an_end_closes(
    env: FrameworkEnvironment,
) -> None:
    async with a_backend(env) as backend:
        backend.back = backend.back.replace("51712", "51728")
        with pytest.raises(XenError, match="no such device here"):
            await peeked(env, backend).__aenter__()
        backend.back = backend.back.replace("51728", "51712")
        async with a_disk(backend), AsyncExitStack() as held:
            before = env.census()
            tap = await held.enter_async_context(peeked(env, backend))
            assert env.census() != before
            await backend.say(state=5)
            async with asyncio.timeout(PATIENCE):
                await tap.over.wait()
            assert env.census() == before, "also while nobody looks"
            assert await tap.look() == []
        with pytest.raises(XenError, match="it is not connected"):
            await peeked(env, backend).__aenter__()
