# SPDX-License-Identifier: MIT
"""A connection of the fake xenstored: io/xs_wire.h from the daemon's side.

Follows tools/xenstore/xenstored_core.c and _watch.c of Xen 4.17, and tools/ocaml/xenstored
where a `flavour` says so.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import re
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from xenpy.paths import Permission, Permissions
from xenpy.store_pyxs import Op
from xenpy.testing.fake_store_tree import Change, Quotas, Refusal, Snapshot, Tree
from xenpy.types import DOM0, DomId

__all__ = ["Daemon", "Flavour", "Peer", "Request"]

Flavour = Literal["c", "oxenstored"]

_HEADER: Final = struct.Struct("<IIII")
_PAYLOAD_MAX: Final = 4096
_RESET_WATCHES: Final = 21
_PATH: Final = re.compile(rb"[A-Za-z0-9/_@-]{1,3072}")
_WRITES: Final = (Op.WRITE, Op.MKDIR, Op.RM, Op.SET_PERMS)
_LOG_LENGTH: Final = 10_000


class Request(NamedTuple):
    """A request as it came, for `FakeXenstored.requests` and `on_request`."""

    op: int
    rq_id: int
    tx_id: int
    payload: bytes


@dataclass
class _Fault:
    error: int
    count: float
    op: Op | None
    path: str | None


class _Watch(NamedTuple):
    path: str  # absolute, or @...
    token: bytes
    prefix: str  # what to take off again for a relative one


class Daemon:
    """What all connections share.

    Attributes:
        tree: the nodes, to look at and to change behind the back of all watches.
        requests: the last requests.
        on_request: called with each request before it is carried out.
        peers: who is served.
        connections: those, and who is accepted or let go of just now.
        mangle: rewrites each message that is sent (a hostile or broken daemon).
    """

    def __init__(self, flavour: Flavour, quotas: Quotas) -> None:
        self.flavour: Flavour = flavour
        self.tree = Tree(quotas)
        self.requests: deque[Request] = deque(maxlen=_LOG_LENGTH)
        self.on_request: Callable[[Request], None] | None = None
        self.mangle: Callable[[bytes], bytes] | None = None
        self.held = False
        self.introduced: set[DomId] = {DOM0}
        self.peers: set[Peer] = set()
        self.connections: set[Peer] = set()
        self.transaction_ids: Iterator[int] = itertools.count(1)
        self.special_perms = Permissions([Permission(DOM0)])
        self._faults: list[_Fault] = []

    def inject(
        self, error: int, *, op: Op | None = None, path: str | None = None, count: float = 1
    ) -> None:
        """Answer the next `count` requests (of this kind, about this path) with an errno.

        `count` may be `math.inf`.
        """
        self._faults.append(_Fault(error, count, op, path))

    def heal(self) -> None:
        """Forget all that was injected."""
        self._faults.clear()

    def fire(self, changes: list[Change]) -> None:
        for change in changes:
            for peer in list(self.peers):
                peer.tell(change)

    def fault(self, op: int, path: str) -> None:
        for fault in self._faults:
            if fault.op in (None, op) and fault.path in (None, path):
                fault.count -= 1
                if fault.count <= 0:
                    self._faults.remove(fault)
                raise Refusal(fault.error)


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, fake: Daemon, domid: DomId) -> None:
        self._fake = fake
        self._domid = domid
        self._home = f"/local/domain/{domid}"
        self._received = b""
        self._waiting: deque[Request] = deque()
        self._transactions: dict[int, Snapshot] = {}
        self._transport: asyncio.Transport | None = None
        self._dropped = False
        self.watches: list[_Watch] = []
        fake.connections.add(self)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            self._fake.peers.add(self)
            if self._dropped:
                self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fake.peers.discard(self)
        self._fake.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= _HEADER.size:
            op, rq_id, tx_id, size = _HEADER.unpack_from(self._received)
            if size > _PAYLOAD_MAX:
                self.drop()  # as C xenstored does
                return
            end = _HEADER.size + size
            if len(self._received) < end:
                break
            self._waiting.append(Request(op, rq_id, tx_id, self._received[_HEADER.size : end]))
            self._received = self._received[end:]
        self.serve()

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    # Answers and events

    def drop(self) -> None:
        self._dropped = True
        if self._transport is not None:
            self._transport.abort()
        self._transport = None
        self._fake.peers.discard(self)

    @property
    def waiting(self) -> int:
        """Requests that have arrived and are held."""
        return len(self._waiting)

    def serve(self) -> None:
        while self._waiting and not self._fake.held:
            self.serve_one()

    def serve_one(self) -> None:
        """Answer the oldest request, held or not."""
        request = self._waiting.popleft()
        self._fake.requests.append(request)
        if self._fake.on_request is not None:
            self._fake.on_request(request)
        try:
            answer = self._answer(request)
        except Refusal as refusal:
            self._send(Op.ERROR, request, refusal.name.encode() + b"\0")
        else:
            self._send(request.op, request, answer)
            if request.op == Op.WATCH:
                self._event(self.watches[-1], self.watches[-1].path)

    def tell(self, change: Change) -> None:
        for watch in list(self.watches):
            if self._concerns(change, watch):
                self._event(watch, change.path)

    def _concerns(self, change: Change, watch: _Watch) -> bool:
        if change.path != watch.path:
            below = change.path.startswith(watch.path.rstrip("/") + "/")
            if change.exact or not below or watch.path.startswith("@"):
                return False
        if self._domid == DOM0:
            return True
        return not change.path.startswith("@") and self._fake.tree.may_be_told(change, self._domid)

    def _event(self, watch: _Watch, path: str) -> None:
        shown = path.removeprefix(watch.prefix)
        # req_id and tx_id of an event mean nothing; Linux leaves rubbish there.
        nobody = Request(Op.WATCH_EVENT, 0xDEAD, 0xBEEF, b"")
        self._send(Op.WATCH_EVENT, nobody, shown.encode() + b"\0" + watch.token + b"\0")

    def _send(self, op: int, request: Request, payload: bytes) -> None:
        message = _HEADER.pack(op, request.rq_id, request.tx_id, len(payload)) + payload
        if self._fake.mangle is not None:
            message = self._fake.mangle(message)
        if self._transport is not None:
            self._transport.write(message)

    # Operations

    def _answer(self, request: Request) -> bytes:
        op, _, tx_id, payload = request
        first = payload.partition(b"\0")[0]
        self._fake.fault(op, first.decode("ascii", "replace"))
        if op == Op.TRANSACTION_END:
            return self._end(tx_id, commit=first == b"T")
        if tx_id and tx_id not in self._transactions:
            raise Refusal(errno.ENOENT)
        if op == Op.TRANSACTION_START:
            return self._start(tx_id)
        if op in (Op.WATCH, Op.UNWATCH):
            return self._watch(op, payload)
        if op in (Op.GET_DOMAIN_PATH, Op.IS_DOMAIN_INTRODUCED):
            return self._domain(op, first)
        if op == _RESET_WATCHES:
            self.watches.clear()
            return b"OK\0"
        if first.startswith(b"@"):
            return self._special(op, payload)
        tree = self._transactions[tx_id] if tx_id else self._fake.tree
        if op in _WRITES:
            changes = self._change(tree, op, payload)
            if isinstance(tree, Snapshot):
                tree.changes += changes
            else:
                self._fake.fire(changes)
            return b"OK\0"
        return self._look(tree, op, payload)

    def _look(self, tree: Tree, op: int, payload: bytes) -> bytes:
        path = self._path(payload.partition(b"\0")[0])
        if op == Op.READ:
            return tree.read(path, self._domid)
        if op == Op.GET_PERMS:
            return tree.get_perms(path, self._domid).encode()
        if op == Op.DIRECTORY:
            names = b"".join(b"%s\0" % c.encode() for c in tree.directory(path, self._domid)[1])
            if len(names) > _PAYLOAD_MAX and self._fake.flavour == "c":
                raise Refusal(errno.E2BIG)
            return names
        if op == Op.DIRECTORY_PART and self._fake.flavour == "c":
            return self._part(tree, path, int(payload.split(b"\0")[1]))
        raise Refusal(errno.ENOSYS)

    def _part(self, tree: Tree, path: str, offset: int) -> bytes:
        number, children = tree.directory(path, self._domid)
        generation = b"%d\0" % number
        names = b"".join(b"%s\0" % child.encode() for child in children)
        room = _PAYLOAD_MAX - len(generation) - 1
        if len(names) - offset <= room:
            return generation + names[offset:] + b"\0"
        return generation + names[offset : names.rindex(b"\0", offset, offset + room) + 1]

    def _change(self, tree: Tree, op: int, payload: bytes) -> list[Change]:
        first, _, rest = payload.partition(b"\0")
        path = self._path(first)
        if op == Op.WRITE:
            return tree.write(path, rest, self._domid)
        if op == Op.MKDIR:
            return tree.mkdir(path, self._domid)
        if op == Op.RM:
            return tree.rm(path, self._domid)
        return tree.set_perms(path, _permissions(rest), self._domid)

    def _special(self, op: int, payload: bytes) -> bytes:
        if self._domid != DOM0:
            raise Refusal(errno.EACCES)
        if op == Op.GET_PERMS:
            return self._fake.special_perms.encode()
        if op == Op.SET_PERMS:
            self._fake.special_perms = _permissions(payload.partition(b"\0")[2])
            return b"OK\0"
        raise Refusal(errno.EINVAL)

    def _start(self, tx_id: int) -> bytes:
        if tx_id:
            raise Refusal(errno.EBUSY)
        quota = self._fake.tree.quotas.transactions
        if self._domid != DOM0 and len(self._transactions) >= quota:
            raise Refusal(errno.ENOSPC)
        number = next(self._fake.transaction_ids)
        self._transactions[number] = Snapshot(self._fake.tree)
        return b"%d\0" % number

    def _end(self, tx_id: int, *, commit: bool) -> bytes:
        snapshot = self._transactions.pop(tx_id, None)
        if snapshot is None:
            raise Refusal(errno.ENOENT)
        if commit:
            self._fake.fire(snapshot.commit())
        return b"OK\0"

    def _watch(self, op: int, payload: bytes) -> bytes:
        words = payload.split(b"\0")
        if len(words) != 3:
            raise Refusal(errno.EINVAL)
        name, token, _ = words
        prefix = "" if name[:1] in (b"/", b"@") else self._home + "/"
        path = name.decode() if name.startswith(b"@") else self._path(name)
        watch = _Watch(path, token, prefix)
        known = any(old[:2] == watch[:2] for old in self.watches)
        if op == Op.UNWATCH:
            if not known:
                raise Refusal(errno.ENOENT)
            self.watches = [old for old in self.watches if old[:2] != watch[:2]]
            return b"OK\0"
        if known:
            raise Refusal(errno.EEXIST)
        if self._domid != DOM0 and len(self.watches) >= self._fake.tree.quotas.watches:
            raise Refusal(errno.E2BIG)
        self.watches.append(watch)
        return b"OK\0"

    def _domain(self, op: int, first: bytes) -> bytes:
        if not first.isdigit():
            raise Refusal(errno.EINVAL)
        if op == Op.GET_DOMAIN_PATH:
            return b"/local/domain/%d\0" % int(first)
        if self._domid != DOM0:
            # XSA-115: who else exists is not for every guest to know.
            raise Refusal(errno.EACCES)
        return b"T\0" if DomId(int(first)) in self._fake.introduced else b"F\0"

    def _path(self, name: bytes) -> str:
        if not _PATH.fullmatch(name) or b"//" in name or (len(name) > 1 and name.endswith(b"/")):
            raise Refusal(errno.EINVAL)
        return name.decode() if name.startswith(b"/") else f"{self._home}/{name.decode()}"


def _permissions(raw: bytes) -> Permissions:
    try:
        return Permissions.parse(raw.decode("ascii"))
    except ValueError:
        raise Refusal(errno.EINVAL) from None
