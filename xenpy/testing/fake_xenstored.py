# SPDX-License-Identifier: MIT
"""A xenstored for tests: the real wire on a unix socket, and faults on demand.

Speaks io/xs_wire.h as C xenstored 4.17 or oxenstored do.  It shares no code with the
client's reader and writer, and passes the same conformance suite as the real ones.

    async with FakeXenstored() as fake:
        fake.introduce(DomId(7))
        async with Store.open(fake.path) as store: ...
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack
from types import TracebackType

from xenpy.paths import Permissions
from xenpy.testing.fake_store_peer import Daemon, Flavour, Peer, Request
from xenpy.testing.fake_store_tree import Change, Quotas
from xenpy.types import DOM0, DomId

__all__ = ["FakeXenstored", "Flavour", "Quotas", "Request"]


class FakeXenstored(Daemon):
    """The daemon.  An async context manager; everything else is synchronous and at once.

    Args:
        flavour: "c" refuses a long DIRECTORY and knows DIRECTORY_PART; "oxenstored"
            answers it with one long packet.

    Attributes:
        path: the socket; who connects to it is domain 0.
    """

    def __init__(self, flavour: Flavour = "c", quotas: Quotas | None = None) -> None:
        super().__init__(flavour, quotas or Quotas())
        self._servers: dict[DomId, asyncio.Server | None] = {DOM0: None}
        self._resources = ExitStack()
        self._directory = self._resources.enter_context(
            tempfile.TemporaryDirectory(prefix="fake-xenstored-")
        )
        self.path = self._socket(DOM0)
        self.tree.write("/local/domain/0/domid", b"0")
        self.tree.write("/tool/xenstored", b"")

    async def __aenter__(self) -> FakeXenstored:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
        self._resources.close()

    # The daemon's life

    async def start(self) -> None:
        """Listen (again)."""
        for domid in self._servers:
            await self.listen(domid)

    async def stop(self) -> None:
        """Go down: connections break, watches and transactions are lost, nodes stay."""
        loop = asyncio.get_running_loop()
        servers = [server for server in self._servers.values() if server is not None]
        self._servers = dict.fromkeys(self._servers)
        # First accept no more: asyncio makes a transport of what it has accepted one turn
        # later, and fails half-way, leaking the socket, when the server is closed by then.
        for server in servers:
            for sock in server.sockets:
                loop.remove_reader(sock.fileno())
        await asyncio.sleep(0)
        for server in servers:
            server.close()
        while self.connections:
            self.cut()
            await asyncio.sleep(0)

    async def listen(self, domid: DomId) -> str:
        """A further socket: who connects to it is that domain, not privileged."""
        self._servers.setdefault(domid, None)
        loop = asyncio.get_running_loop()
        if self._servers[domid] is None:
            self._servers[domid] = await loop.create_unix_server(
                lambda: Peer(self, domid), self._socket(domid)
            )
        return self._socket(domid)

    def cut(self) -> None:
        """Break every connection, with whatever is in flight."""
        for peer in list(self.connections):
            peer.drop()

    def hold(self) -> None:
        """Take requests and answer none, as a stopped daemon does."""
        self.held = True

    @property
    def waiting(self) -> int:
        """Requests that have arrived and are held."""
        return sum(peer.waiting for peer in self.peers)

    def answer_one(self) -> None:
        """Answer the oldest request of each connection; the others stay held."""
        for peer in list(self.peers):
            if peer.waiting:
                peer.serve_one()

    def release(self) -> None:
        """Answer what has been held, and go on."""
        self.held = False
        for peer in list(self.peers):
            peer.serve()

    # As the toolstack would, at once

    def introduce(self, domid: DomId) -> None:
        """Make a domain's home as libxl does, and tell everybody that the domain is there."""
        home = f"/local/domain/{domid}"
        for path, perms in (
            (home, f"n0,r{domid}"),
            (f"{home}/device", f"n0,r{domid}"),
            (f"{home}/data", f"n{domid}"),
        ):
            self.write(path, b"")
            self.set_perms(path, perms)
        self.write(f"{home}/domid", str(domid))
        self.introduced.add(domid)
        self.fire([Change("@introduceDomain", exact=False)])

    def release_domain(self, domid: DomId) -> None:
        """The domain has died.  Its nodes stay: libxl removes them later."""
        self.introduced.discard(domid)
        self.fire([Change("@releaseDomain", exact=False)])

    def read(self, path: str) -> str:
        """Raises KeyError if there is no such node."""
        return self.tree.nodes[path].value.decode("utf-8", "surrogateescape")

    def get(self, path: str) -> str | None:
        return self.read(path) if path in self.tree.nodes else None

    def write(self, path: str, value: str | bytes, domid: DomId = DOM0) -> None:
        raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        self.fire(self.tree.write(path, raw, domid))

    def rm(self, path: str) -> None:
        self.fire(self.tree.rm(path))

    def set_perms(self, path: str, perms: str) -> None:
        self.fire(self.tree.set_perms(path, Permissions.parse(perms)))

    @property
    def watches(self) -> list[str]:
        """What is watched now, over all connections."""
        return sorted(watch.path for peer in self.peers for watch in peer.watches)

    def _socket(self, domid: DomId) -> str:
        return f"{self._directory}/socket" + (f".{domid}" if domid != DOM0 else "")
