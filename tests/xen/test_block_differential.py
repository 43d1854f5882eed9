# SPDX-License-Identifier: MIT
"""One random stream of requests, to the kernel's xen-blkback, to each engine of ours and to a
plain model in Python: the same statuses, the same bytes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conformance.block_front import PATIENCE, Blkfront, Daemon, Served, connected
from conformance.block_history_suite import DATA_PAGES, History
from conformance.block_suite import CONTENT
from conformance.stock_backends import Nodes, a_loop, blkback_module, unload_blkback
from conformance.xen_env import Loopback, nothing_left_in_the_hypervisor
from xenpy.drivers.block.protocol import OP_READ, RSP_ERROR, RSP_OKAY
from xenpy.xenstore import NotYet, Reader, Store

__all__ = ["nothing_left_in_the_hypervisor"]

SEED = 7
BATCHES = 24
END = len(CONTENT) // 512


@dataclass(frozen=True)
class Outcome:
    """What a stream came to: the status of each request by its id, and of those to refuse."""

    statuses: dict[int, int]
    refused: list[int]


@contextmanager
def a_front() -> Iterator[Blkfront]:
    front = Blkfront(Loopback(), data_pages=DATA_PAGES, table_pages=4)
    try:
        yield front
    finally:
        front.close()


def play(front: Blkfront, image: Path) -> Outcome:
    """Send the stream of `SEED`.  Data are compared with the model's."""
    history = History(front, random.Random(SEED))
    statuses: dict[int, int] = {}
    for _ in range(BATCHES):
        history.batch()
        statuses |= {response.id: response.status for response in front.ask(history.slots)}
        for pieces in history.expected.values():
            for place, piece in pieces:
                assert front.peek(place, len(piece)) == piece
    page = front.refs[0]
    # In each one thing is wrong: the place, the order of the sectors, the sectors of a page.
    refused = [
        front.status(OP_READ, sector, [(page, first, last)])
        for sector, first, last in ((END, 0, 7), (END - 7, 0, 7), (0, 5, 4), (0, 0, 8))
    ]
    assert front.flush() == RSP_OKAY
    assert image.read_bytes() == bytes(history.disk)
    return Outcome(statuses, refused)


async def by_blkback(image: Path) -> Outcome:
    """The kernel's answers."""
    async with Store.open() as store:
        nodes = Nodes(store, "vbd")

        async def until(state: int) -> None:
            async def there(reader: Reader) -> None:
                if await reader.get(f"{nodes.back}/state") != str(state):
                    raise NotYet

            await store.wait(there, timeout=PATIENCE)

        with a_loop(image) as device, a_front() as front:
            await nodes.make({"type": "phy", "params": device, "mode": "w"})
            try:
                await nodes.plug(device)
                await until(2)
                keys = front.keys()
                # The last one says that the others are there.
                for key in sorted(keys, key=lambda name: name == "state"):
                    await store.write(f"{nodes.front}/{key}", keys[key])
                await until(4)
                outcome = await asyncio.to_thread(play, front, image)
                await store.write(f"{nodes.front}/state", 6)
            finally:
                await nodes.remove()
    return outcome


def by_us(image: Path, tier: str) -> Outcome:
    daemon = Daemon()
    try:
        served = Served(daemon, Loopback(), image, devid=51712, tier=tier)
        with a_front() as front, connected(front, served):
            outcome = play(front, image)
        served.close()
    finally:
        daemon.close()
    return outcome


def test_the_same_stream_comes_to_the_same(tmp_path: Path) -> None:
    print(f"seed {SEED}")

    def image(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(CONTENT)
        return path

    with blkback_module():
        theirs = asyncio.run(by_blkback(image("blkback")))
    unload_blkback()
    assert set(theirs.statuses.values()) == {RSP_OKAY}
    assert set(theirs.refused) == {RSP_ERROR}
    for tier in ("worker", "native", "callback", "batch"):
        assert by_us(image(tier), tier) == theirs, tier
    print(f"{len(theirs.statuses)} requests")
