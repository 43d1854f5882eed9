# SPDX-License-Identifier: MIT
"""The driver that the documentation shows, against a frontend that is not honest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import pytest

from examples import load
from xenpy.backend import DeviceContext
from xenpy.devlog import BoundedLog
from xenpy.errors import PeerError, XenError
from xenpy.testing.fake_xen import FakeXen
from xenpy.types import DOM0, DevId, DomId

echo_driver = load("docs/howto/echo_driver.py")


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({}, PeerError),
        ({"ring-ref": "8"}, PeerError),
        ({"ring-ref": "-1", "event-channel": "1"}, PeerError),
        ({"ring-ref": "٣", "event-channel": "1"}, PeerError),
        ({"ring-ref": "8", "event-channel": "9" * 11}, PeerError),
        ({"ring-ref": "4000000000", "event-channel": "1"}, XenError),
        ({"ring-ref": "good", "event-channel": "77"}, XenError),
    ],
    ids=str,
)
def test_keys_that_make_no_sense(keys: Mapping[str, str], error: type[Exception]) -> None:
    xen = FakeXen()
    context = DeviceContext(
        kind="echo", domid=DomId(1), devid=DevId(0), path="/b", frontend_path="/f",
        backend_keys={}, options={}, xen=xen.domain(DOM0),
        log=BoundedLog(logging.getLogger("echo"), "echo/1/0"),
    )  # fmt: skip

    async def connect(frontend: Mapping[str, str]) -> None:
        device = echo_driver["EchoBackend"](context)
        with pytest.raises(error):
            await device.connect(frontend)
        await device.disconnect()
        await device.close()

    with xen.domain(1).open_share() as share:
        good = str(share.share(DOM0, 1).refs[0])
        asyncio.run(connect({key: good if text == "good" else text for key, text in keys.items()}))
    assert set(xen.census().values()) == {0}
    xen.close()
