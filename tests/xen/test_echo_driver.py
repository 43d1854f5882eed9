# SPDX-License-Identifier: MIT
"""The driver that the documentation shows, on a real Xen: domain 0 is its own guest."""

from __future__ import annotations

import asyncio

from examples import load
from xenpy.backend import NativeXen
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare
from xenpy.types import DOM0
from xenpy.xenstore import Store

drive_echo = load("docs/howto/drive_echo.py")


def test_eight_bytes_come_back_in_reverse() -> None:
    async def main() -> list[bytes]:
        async with Store.open() as store:
            frontend = GrantShare(), EventChannels()
            answers: list[bytes] = await drive_echo["serve_and_ask"](
                store, NativeXen(), DOM0, frontend
            )
            assert not await store.exists("/local/domain/0/backend/echo/0")
            assert not await store.exists("/local/domain/0/device/echo/0")
            return answers

    assert asyncio.run(main()) == [b"backward"]
