# SPDX-License-Identifier: MIT
"""The XenStore suite over dom0's own xenstored: its socket, and /dev/xen/xenbus."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from conformance.store_suite import *  # noqa: F403 - the tests themselves
from conformance.store_suite import PATIENCE, Session, session_on, soon, until
from xenpy.store_pyxs import default_path
from xenpy.types import DOM0, DomId
from xenpy.xenstore import Store, Transaction

SOCKET = "/run/xenstored/socket"
DEVICE = "/dev/xen/xenbus"


def daemon() -> Path:
    """The executable of the running xenstored."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            executable = (process / "exe").readlink()
        except OSError:
            continue
        if executable.name in ("xenstored", "oxenstored"):
            return executable
    raise LookupError("no xenstored runs")


class RealEnvironment:
    def __init__(self, path: str) -> None:
        self._path = path

    def session(self) -> AbstractAsyncContextManager[Session]:
        is_device = self._path == DEVICE
        # On the ring oxenstored refuses what does not fit into one packet.
        other = daemon().name == "oxenstored"
        return session_on(
            self._path,
            is_device=is_device,
            long_directories=not (is_device and other),
            max_value=2048 if other else 4096,
        )


@pytest.fixture(
    params=[
        pytest.param(SOCKET, marks=pytest.mark.oxenstored_too, id="socket"),
        pytest.param(DEVICE, marks=pytest.mark.oxenstored_too, id="device"),
    ]
)
def xenstored(request: pytest.FixtureRequest) -> RealEnvironment:
    if not os.path.exists(request.param):
        pytest.skip(f"no {request.param}: this is no Xen dom0")
    return RealEnvironment(request.param)


def test_a_live_update_of_xenstored_is_survived(xenstored: RealEnvironment) -> None:
    """Requests go on being answered, watches go on telling, nothing is reconnected."""

    async def main() -> None:
        executable = daemon()
        async with xenstored.session() as session:
            store, base = session.store, session.base
            async with store.watch(f"{base}/n") as watch:
                await soon(anext(watch))
                stop = asyncio.Event()

                async def keep_asking() -> int:
                    count = 0
                    while not stop.is_set():
                        await store.write(f"{base}/other", count)
                        assert await store.read(f"{base}/other") == str(count)
                        count += 1
                    return count

                asking = asyncio.create_task(keep_asking())
                command = ["xenstore-control", "live-update", str(executable)]
                # It waits for open transactions to end, so that none may be kept open here.
                process = await asyncio.create_subprocess_exec(
                    *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                output, _ = await soon(process.communicate())
                assert process.returncode == 0, output
                await asyncio.sleep(0.2)
                stop.set()
                assert await soon(asking) > 0
                await store.write(f"{base}/n", "after")
                await until(watch, f"{base}/n")
                assert await store.read(f"{base}/n") == "after"
                assert store.reconnects == 0

    if daemon().name == "xenstored":
        asyncio.run(main())


@pytest.mark.oxenstored_too
def test_the_socket_is_found_first() -> None:
    assert default_path() == SOCKET


@pytest.mark.oxenstored_too
def test_both_ways_lead_to_the_same_store() -> None:
    async def main() -> None:
        async with (
            session_on(SOCKET) as session,
            Store.open(DEVICE, timeout=PATIENCE) as other,
            other.watch(f"{session.base}/v") as watch,
        ):
            await soon(anext(watch))
            await session.store.write(f"{session.base}/v", b"\0\xff")
            await until(watch, f"{session.base}/v")
            assert await other.read_bytes(f"{session.base}/v") == b"\0\xff"

            async def conflict(tx: Transaction) -> int:
                nonlocal runs
                runs += 1
                number = await tx.read_bytes(f"{session.base}/v")
                if runs == 1:
                    await session.store.write(f"{session.base}/v", b"changed")
                await tx.write(f"{session.base}/v", number + b"!")
                return runs

            runs = 0
            assert await other.transact(conflict) == 2
            assert await session.store.read(f"{session.base}/v") == "changed!"
            assert await other.domid() == DOM0
            assert await other.is_domain_introduced(DomId(32000)) is False

    asyncio.run(main())
