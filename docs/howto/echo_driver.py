# SPDX-License-Identifier: MIT
"""A whole driver: a guest sends eight bytes, and gets them back in reverse."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from xenpy.attach import DevicePlan
from xenpy.backend import Device, DeviceContext, Keys
from xenpy.driver import Driver
from xenpy.errors import PeerError
from xenpy.ring import BackRing, RingLayout
from xenpy.runtime import Queue, QueueThread
from xenpy.types import DevId, GrantRef, Port

LAYOUT = RingLayout(request_size=8, response_size=8)


def number(frontend: Mapping[str, str], key: str) -> int:
    """A key of the frontend's, which may be missing or anything."""
    text = frontend.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise PeerError(f"{key} is {text[:40]!r}")
    return int(text)


class EchoQueue(Queue):
    """The data plane.  All of it runs in the queue's own thread."""

    def __init__(self, context: DeviceContext, ref: GrantRef, port: Port) -> None:
        self.context, self.ref, self.remote_port = context, ref, port
        self.held = ExitStack()

    def open(self) -> None:
        xen, domid = self.context.xen, self.context.domid
        grants = self.held.enter_context(xen.open_grants())
        self.ring = BackRing(grants.map(domid, [self.ref]), LAYOUT)
        self.channels = self.held.enter_context(xen.open_evtchn())
        self.port = self.channels.bind_interdomain(domid, self.remote_port)

    def service(self) -> int:
        while not (requests := self.ring.take()):
            if not self.ring.final_check():
                return 0
        if self.ring.push([request[::-1] for request in requests]):
            self.channels.notify(self.port)
        return len(requests)

    def close(self) -> None:
        self.held.close()


class EchoBackend(Device):
    """The control plane: four coroutines."""

    thread: QueueThread | None = None

    async def prepare(self) -> Keys:
        return {"feature-reverse": 1}

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        ref = GrantRef(number(frontend, "ring-ref"))
        queue = EchoQueue(self.context, ref, Port(number(frontend, "event-channel")))
        self.thread = QueueThread(queue, self.context.name, self.context.on_failure)
        await self.thread.start()
        return {}

    async def disconnect(self) -> None:
        if self.thread is not None:
            await self.thread.stop()
            self.thread = None

    async def close(self) -> None:
        pass


def plan(words: Mapping[str, str], kind: str) -> DevicePlan:
    """`xenpy attach echo DOMID` takes no words: one device for each domain."""
    if words:
        raise ValueError(f"echo takes no {sorted(words)[0]!r}")
    return DevicePlan("echo", kind, DevId(0), backend_keys={}, frontend_keys={})


DRIVER = Driver(
    name="echo",
    kind="echo",
    summary="eight bytes, reversed",
    backend=EchoBackend,
    options={},
    plan=plan,
)
