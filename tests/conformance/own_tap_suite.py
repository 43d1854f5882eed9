# SPDX-License-Identifier: MIT
"""The tap of a protocol of one's own: one suite for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `enter`, which enters a
`xenpy.testing.world.World`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE
from conformance.own_suite import (
    BUG,
    REFUSE,
    SEVERAL,
    SLOW,
    SUM,
    WORK,
    Batched,
    Enter,
    Request,
    Response,
    Several,
    Work,
)
from conformance.shown import shown
from xenpy.control import ask
from xenpy.driver import Driver, Value
from xenpy.errors import XenError
from xenpy.ring_backend import driver_of
from xenpy.ring_frontend import Connection
from xenpy.service import Service
from xenpy.testing.world import World, device
from xenpy.trace import TraceReader, TraceRecord
from xenpy.wire import CAbi


@asynccontextmanager
async def served(world: World, driver: Driver, rundir: Path) -> AsyncGenerator[str]:
    """As `xenpy run` does.  Yields the name of device 0."""
    service = Service(world.store, driver.kind, driver.backend, xen=world.backend)
    async with shown(service, driver.name, rundir), device(world, driver):
        yield f"{driver.kind}/{world.domid}/0"


@asynccontextmanager
async def connected(
    enter: Enter, driver: Driver, rundir: Path
) -> AsyncGenerator[tuple[str, Connection[Request, Response]]]:
    """The name of a device that speaks WORK, and its frontend."""
    async with (
        enter() as world,
        served(world, driver, rundir) as name,
        world.connect(WORK) as link,
    ):
        yield name, link


class Tap:
    """What `xenpy tap` does with its answer."""

    def __init__(self, driver: Driver, name: str, rundir: Path) -> None:
        self._held = ExitStack()
        answer = self._held.enter_context(ask(name, rundir))
        assert (answer.driver, answer.layout) == (driver.name, CAbi.native().protocol)
        self._readers = [self._held.enter_context(TraceReader(fd)) for fd in answer.fds]
        self._driver = driver
        self._layout = answer.layout
        self.rings = answer.rings

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def records(self) -> list[list[TraceRecord]]:
        """Of each ring, since the last call."""
        assert not any(reader.lost for reader in self._readers)
        return [reader.read() for reader in self._readers]

    @property
    def ended(self) -> bool:
        return all(reader.ended for reader in self._readers)

    def rows(self, ring: int = 0) -> list[dict[str, Value]]:
        return [dict(self._driver.decode(self._layout, one)) for one in self.records()[ring]]


def row(request: Request, value: int, status: int) -> dict[str, Value]:
    return {**request._asdict(), "value": value, "status": status}


def test_a_request_and_its_answer_by_name(enter: Enter, tmp_path: Path) -> None:
    """In the order of the answers, whoever made them: handlers that wait, raise or err."""
    driver = driver_of(Work, WORK)

    async def main() -> None:
        async with connected(enter, driver, tmp_path) as (name, link):
            with link.grant() as page:
                page[:2] = b"\x01\x02"
                await link.request(Request(1, page.ref, 1, SUM))
                with await asyncio.to_thread(Tap, driver, name, tmp_path) as tap:
                    slow = asyncio.create_task(link.request(Request(2, 0, 0, SLOW)))
                    await asyncio.sleep(0)
                    asked = [Request(3, page.ref, 2, SUM), Request(4, 0, 0, BUG)]
                    asked.append(Request(5, 0, 0, REFUSE))
                    for request in asked:
                        await link.request(request)
                    await slow
                    (records,) = tap.records()
                    decoded = [driver.decode(CAbi.native().protocol, one) for one in records]
        rows = {int(str(one["id"])): one for one in decoded}
        assert rows == {
            2: row(Request(2, 0, 0, SLOW), 0, 0),
            3: row(asked[0], 3, 0),
            4: row(asked[1], 0, -errno.EIO),
            5: row(asked[2], 0, -errno.ENOSPC),
        }
        times = {
            int(str(one["id"])): (record.taken, record.answered)
            for one, record in zip(decoded, records, strict=True)
        }
        assert all(taken < answered for taken, answered in times.values())
        # It slept.
        assert times[2][1] - times[2][0] > 9_000_000
        assert {record.position for record in records} == {1, 2, 3, 4}
        sizes = {(record.request_size, record.response_size) for record in records}
        layout = WORK.codec().layout
        assert sizes == {(layout.request_size, layout.response_size)}

    asyncio.run(main())


def test_all_that_came_together(enter: Enter, tmp_path: Path) -> None:
    driver = driver_of(Batched, WORK)

    async def main() -> None:
        async with connected(enter, driver, tmp_path) as (name, link):
            with await asyncio.to_thread(Tap, driver, name, tmp_path) as tap:
                requests = [Request(ident, 0, 0, SUM) for ident in range(100)]
                answers = await asyncio.gather(*map(link.request, requests))
                rows = tap.rows()
            await link.request(Request(7, 0, 0, SUM))
        assert rows == [
            row(request, answer.value, 0) for request, answer in zip(requests, answers, strict=True)
        ]

    asyncio.run(main())


def test_each_ring_is_tapped_until_it_is_gone(enter: Enter, tmp_path: Path) -> None:
    driver = driver_of(Several, SEVERAL)

    async def main() -> None:
        async with enter() as world, served(world, driver, tmp_path) as name:
            async with world.connect(SEVERAL, rings=3) as link:
                tap = await asyncio.to_thread(Tap, driver, name, tmp_path)
                assert tap.rings == 3
                for ring in (2, 0, 1, 0):
                    await link.request(Request(ring, 0, 0, SLOW), ring=ring)
            async with asyncio.timeout(PATIENCE):
                while not tap.ended:
                    await asyncio.sleep(0.01)
            # What was recorded before the end is still there.
            idents = [idents_of(driver, records) for records in tap.records()]
            assert idents == [[0, 0], [1], [2]]
            with tap, pytest.raises(XenError, match="has nothing to tap"):
                await asyncio.to_thread(ask, name, tmp_path)

    asyncio.run(main())


def idents_of(driver: Driver, records: Sequence[TraceRecord]) -> list[Value]:
    return [driver.decode(CAbi.native().protocol, record)["id"] for record in records]


def test_a_frontend_notices_no_tap(enter: Enter, tmp_path: Path) -> None:
    """One that comes, one that does not read, one that has gone."""
    driver = driver_of(Work, WORK)

    async def main() -> list[Response]:
        async with connected(enter, driver, tmp_path) as (name, link):
            answers: list[Response] = []
            for turn in range(3):
                with await asyncio.to_thread(Tap, driver, name, tmp_path):
                    answers.append(await link.request(Request(2 * turn, 0, 0, SUM)))
                answers.append(await link.request(Request(2 * turn + 1, 0, 0, SUM)))
            return answers

    assert asyncio.run(main()) == [Response(ident, 0, 0) for ident in range(6)]
