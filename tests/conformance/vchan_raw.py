# SPDX-License-Identifier: MIT
"""Peers of vchan that keep to nothing: a page and a port, to be scribbled over."""

from __future__ import annotations

import struct
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from conformance.vchan_arena import Arena
from xenpy.evtchn import EventChannels
from xenpy.memory import PageMemory
from xenpy.types import GrantRef, Port

__all__ = ["FIELDS", "RawClient", "RawPeer", "RawServer"]

FIELDS: Final = {
    "left.cons": (0, "<I"), "left.prod": (4, "<I"), "right.cons": (8, "<I"),
    "right.prod": (12, "<I"), "left_order": (16, "<H"), "right_order": (18, "<H"),
    "cli_live": (20, "<B"), "srv_live": (21, "<B"), "cli_notify": (22, "<B"),
    "srv_notify": (23, "<B"),
}  # fmt: skip
"""libxenvchan.h, written down a second time."""
GRANTS: Final = 24


class RawPeer:
    """Leaving it is what the kernel does when the process dies."""

    page: PageMemory
    channels: EventChannels
    port: Port

    def __init__(self) -> None:
        self._held = ExitStack()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.die()

    def die(self) -> None:
        self._held.close()

    def set(self, **fields: int) -> None:
        """`left_prod=5`: write there, whatever it is."""
        with self.page.view() as view:
            for name, value in fields.items():
                key = name if name in FIELDS else name.replace("_", ".", 1)
                offset, form = FIELDS[key]
                struct.pack_into(form, view, offset, value & (256 ** struct.calcsize(form) - 1))

    def get(self, name: str) -> int:
        offset, form = FIELDS[name]
        with self.page.view() as view:
            return int(struct.unpack_from(form, view, offset)[0])

    def put(self, offset: int, content: bytes) -> None:
        with self.page.view(offset, len(content)) as view:
            view[:] = content

    def notify(self) -> None:
        self.channels.notify(self.port)


class RawServer(RawPeer):
    """A server with rings of 1024 and 2048 bytes in its page, unless told otherwise."""

    def __init__(
        self, arena: Arena, left_order: int = 10, right_order: int = 11, *grants: int
    ) -> None:
        super().__init__()
        half = arena.server
        self.channels = self._held.enter_context(half.xen.open_evtchn())
        self.port = self.channels.bind_unbound(arena.client.domid)
        share = self._held.enter_context(half.xen.open_share())
        pages = share.share(arena.client.domid, 1, notify_offset=21, notify_port=self.port)
        self.page, self.ref = pages, pages.refs[0]
        self.set(left_order=left_order, right_order=right_order, cli_live=2, srv_live=1)
        self.put(GRANTS, struct.pack(f"<{len(grants)}I", *grants))
        self._arena = arena

    async def publish(self, **keys: str | int) -> None:
        """The keys, or others."""
        arena = self._arena
        values = {"ring-ref": self.ref, "event-channel": self.port}
        values |= {name.replace("_", "-"): value for name, value in keys.items()}
        for name, value in values.items():
            where = f"{arena.where}/{name}"
            await arena.server.store.write(where, value)
            await arena.server.store.set_perms(
                where, f"n{arena.server.domid},r{arena.client.domid}"
            )

    async def __aenter__(self) -> Self:
        await self.publish()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.die()
        await self._arena.server.store.rm(self._arena.where)


class RawClient(RawPeer):
    """A client that has mapped the page and bound the port, and said nothing."""

    def __init__(self, arena: Arena, ref: int, port: int) -> None:
        super().__init__()
        half = arena.client
        self.channels = self._held.enter_context(half.xen.open_evtchn())
        self.port = self.channels.bind_interdomain(arena.server.domid, Port(port))
        table = self._held.enter_context(half.xen.open_grants())
        self.page = table.map(
            arena.server.domid, [GrantRef(ref)], notify_offset=20, notify_port=self.port
        )

    def __enter__(self) -> Self:
        return self

    @classmethod
    async def of(cls, arena: Arena) -> RawClient:
        store = arena.client.store
        ref, port = [
            int(await store.read(f"{arena.where}/{name}")) for name in ("ring-ref", "event-channel")
        ]
        return cls(arena, ref, port)
