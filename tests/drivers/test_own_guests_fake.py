# SPDX-License-Identifier: MIT
"""docs/howto/xor.py and ask_xor.py as they are: between a guest and dom0, and between two guests,
neither of which XenStore lets do what only dom0 may."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import io
import logging
import runpy
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import xenpy
from fences import ROOT
from xenpy.attach import Endpoints, attach, detach
from xenpy.cli.main import main
from xenpy.driver import Driver
from xenpy.errors import XenError
from xenpy.ring_backend import driver_of
from xenpy.ring_frontend import Connection, connect
from xenpy.service import Service
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId
from xenpy.xenstore import NotYet, Reader, Store

HOWTO = ROOT / "docs/howto"
FRONT, BACK = DomId(2), DomId(1)
PATIENCE = 60.0


@dataclass(frozen=True)
class Machine:
    """A fake machine with a device of xor that is served.

    Attributes:
        toolstack: dom0's store.
        path: the socket of dom0's store.
        service, running: the backend's, and its task.
    """

    xen: FakeXen
    fake: FakeXenstored
    toolstack: Store
    path: str
    service: Service
    running: asyncio.Task[None]
    ends: Endpoints

    async def until_state(self, state: str | None) -> None:
        """Until the backend shows it; None: until its node has gone."""

        async def look(reader: Reader) -> None:
            if await reader.get(f"{self.ends.backend}/state") != state:
                raise NotYet

        await self.toolstack.wait(look, timeout=PATIENCE)

    async def until_unserved(self) -> None:
        """Until the backend has no device."""
        async with asyncio.timeout(PATIENCE):
            while self.service.devices:
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        """End the backend at once, as the death of its domain does."""
        self.running.cancel()
        await asyncio.wait([self.running])


@pytest.fixture
def xor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """xor.py as a module, which its frontend imports."""
    monkeypatch.syspath_prepend(str(HOWTO))
    sys.modules.pop("xor", None)
    yield importlib.import_module("xor")
    sys.modules.pop("xor", None)


@pytest.fixture
def driver(xor: Any) -> Driver:
    return driver_of(xor.Xor, xor.Xor.protocol)


@asynccontextmanager
async def machine(driver: Driver, backend: DomId) -> AsyncGenerator[Machine]:
    """Served in domain `backend`, attached to domain 2 by dom0."""
    xen = FakeXen()
    async with FakeXenstored() as fake, Store.open(fake.path) as toolstack:
        for domid in (BACK, FRONT):
            fake.introduce(domid)
        path = fake.path if backend == DOM0 else await fake.listen(backend)
        async with Store.open(path) as store:
            service = Service(
                store, driver.kind, driver.backend, xen=xen.domain(backend), domid=backend
            )
            running = asyncio.create_task(service.run())
            plan = driver.plan({}, driver.kind)
            ends = await attach(toolstack, FRONT, plan, backend_domid=backend)
            here = Machine(xen, fake, toolstack, fake.path, service, running, ends)
            try:
                yield here
            finally:
                await here.end()
    assert not any(xen.census().values()), xen.census()
    xen.close()


def ask() -> str:
    """What ask_xor.py prints, run as a program."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(f"{HOWTO}/ask_xor.py", run_name="__main__")
    return said.getvalue()


@pytest.mark.parametrize("backend", [DOM0, BACK], ids=["dom0", "another guest"])
def test_the_two_files_as_they_are(
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    backend: DomId,
) -> None:
    async def run() -> None:
        async with machine(driver, backend) as here:
            # A program finds the domain that it runs in by itself: there its store and handles are.
            monkeypatch.setenv("XENSTORED_PATH", await here.fake.listen(FRONT))
            connecting = functools.partial(connect, xen=here.xen.domain(FRONT))
            monkeypatch.setattr(xenpy, "connect", connecting, raising=False)
            for _ in range(2):
                assert await asyncio.to_thread(ask) == "0 b'HELLO'\n"
            await detach(here.toolstack, here.ends)

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert not caplog.records


@asynccontextmanager
async def connected(here: Machine, xor: Any) -> AsyncGenerator[Connection[Any, Any]]:
    """A frontend that has had an answer, and is still there."""
    async with Store.open(await here.fake.listen(FRONT)) as store:
        link = connect(xor.Xor.protocol, store=store, xen=here.xen.domain(FRONT))
        async with link:
            with link.grant() as page:
                assert (await link.request(xor.Request(1, page.ref, 1))).status == 0
            yield link


def test_a_guest_dies_whose_backend_is_another_guest_s(
    xor: Any, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    """The backend lets go, and who made the device can take it away."""

    async def run() -> None:
        async with machine(driver, BACK) as here, connected(here, xor):
            # As libxl does it: the domain, then its nodes.
            here.fake.release_domain(FRONT)
            here.fake.rm(f"/local/domain/{FRONT}")
            await here.until_state("6")
            assert here.xen.census()["mapped grants"] == 0
            here.fake.introduce(FRONT)
            words = ["detach", f"{HOWTO}/xor.py", str(FRONT), "--backend", str(BACK)]
            assert await asyncio.to_thread(main, [*words, "--store", here.path]) == 0
            await here.until_state(None)
            await here.until_unserved()

    with caplog.at_level(logging.WARNING, logger="xenpy.service"):
        asyncio.run(run())
    assert not [record for record in caplog.records if record.name == "xenpy.service"]


def test_a_backend_s_guest_dies(xor: Any, driver: Driver) -> None:
    """The frontend is told, and the half that is left can be taken away, for another device."""

    async def run() -> None:
        async with machine(driver, BACK) as here, connected(here, xor) as link:
            await here.end()
            here.fake.release_domain(BACK)
            here.fake.rm(f"/local/domain/{BACK}")
            with pytest.raises(XenError, match="the backend has gone"):
                await asyncio.wait_for(link.request(xor.Request(2, 0, 0)), PATIENCE)
            words = ["detach", f"{HOWTO}/xor.py", str(FRONT), "--backend", str(BACK)]
            assert await asyncio.to_thread(main, [*words, "--store", here.path]) == 0
            assert not await here.toolstack.exists(here.ends.frontend)
            assert await asyncio.to_thread(main, [*words, "--store", here.path]) == 1

    asyncio.run(run())
