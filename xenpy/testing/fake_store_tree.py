# SPDX-License-Identifier: MIT
"""The nodes, permissions, quotas and transactions of the fake xenstored, without any wire.

Follows tools/xenstore/xenstored_core.c, _transaction.c and _domain.c of Xen 4.17: a
transaction remembers what it touched and conflicts if any of that was changed by the time
it ends; a new node makes its parent a changed one.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from xenpy.paths import Permission, Permissions
from xenpy.types import DOM0, DomId

__all__ = ["Change", "Node", "Quotas", "Refusal", "Snapshot", "Tree", "parent_of"]


class Refusal(Exception):
    """xenstored says no: an ERROR packet with this name."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.name = errno.errorcode[number]


class Node(NamedTuple):
    """One node.  Never changed, only replaced, so that identity tells a change."""

    value: bytes
    perms: Permissions
    children: tuple[str, ...]
    generation: int


class Change(NamedTuple):
    """What watches are told about."""

    path: str
    exact: bool
    """Only watches on just this path: it went away with a node above it."""
    perms: Permissions | None = None
    """Of a node that has gone: who could read it is told (XSA-115)."""


@dataclass
class Quotas:
    """C xenstored's limits for a domain that is not privileged."""

    nodes: int = 1000
    node_size: int = 2048
    watches: int = 128
    transactions: int = 10


_ROOT_PERMS: Final = Permissions([Permission(DOM0)])


def parent_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"


@dataclass
class Tree:
    """All nodes by absolute path, and the operations on them.

    Each operation takes the domain that asks; domain 0 may do everything.
    """

    quotas: Quotas = field(default_factory=Quotas)
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    owned: Counter[DomId] = field(default_factory=Counter[DomId])
    generation: int = 0

    def __post_init__(self) -> None:
        self.nodes["/"] = Node(b"", _ROOT_PERMS, (), 0)

    # What a transaction does differently

    def look(self, path: str) -> Node | None:
        return self.nodes.get(path)

    def put(self, path: str, node: Node | None) -> None:
        old = self.nodes.pop(path, None)
        if old is not None:
            self.owned[old.perms.owner] -= 1
        if node is not None:
            self.nodes[path] = node
            self.owned[node.perms.owner] += 1

    def stamp(self) -> int:
        self.generation += 1
        return self.generation

    # Operations

    def read(self, path: str, domid: DomId = DOM0) -> bytes:
        return self._node(path, domid, write=False).value

    def directory(self, path: str, domid: DomId = DOM0) -> tuple[int, tuple[str, ...]]:
        """Generation and names."""
        node = self._node(path, domid, write=False)
        return node.generation, node.children

    def get_perms(self, path: str, domid: DomId = DOM0) -> Permissions:
        return self._node(path, domid, write=False).perms

    def write(self, path: str, value: bytes, domid: DomId = DOM0) -> list[Change]:
        if domid != DOM0 and len(value) + len(path) > self.quotas.node_size:
            raise Refusal(errno.ENOSPC)
        old = self.look(path)
        if old is None:
            self._create(path, value, domid)
        else:
            self._check(old, domid, write=True)
            self.put(path, old._replace(value=value, generation=self.stamp()))
        return [Change(path, exact=False)]

    def mkdir(self, path: str, domid: DomId = DOM0) -> list[Change]:
        old = self.look(path)
        if old is not None:
            self._check(old, domid, write=True)
            return []
        self._create(path, b"", domid)
        return [Change(path, exact=False)]

    def rm(self, path: str, domid: DomId = DOM0) -> list[Change]:
        if path == "/":
            raise Refusal(errno.EINVAL)
        if self.look(path) is None and self.look(parent_of(path)) is not None:
            self._check_parents(path, domid)
            return []  # gone is what was asked for
        self._node(path, domid, write=True)
        above = parent_of(path)
        parent = self.look(above)
        if parent is not None:
            name = path.rpartition("/")[2]
            left = tuple(child for child in parent.children if child != name)
            self.put(above, parent._replace(children=left, generation=self.stamp()))
        return self._remove(path)

    def set_perms(self, path: str, perms: Permissions, domid: DomId = DOM0) -> list[Change]:
        node = self._node(path, domid, write=True)
        if domid != DOM0 and not domid == node.perms.owner == perms.owner:
            raise Refusal(errno.EPERM)
        self.put(path, node._replace(perms=perms, generation=self.stamp()))
        return [Change(path, exact=False)]

    def may_be_told(self, change: Change, domid: DomId) -> bool:
        """Could or can the domain see the node, or the nearest one above it?"""
        if change.perms is not None and _allowed(change.perms, domid)[0]:
            return True
        path = change.path
        node = self.look(path)
        while node is None:
            path = parent_of(path)
            node = self.look(path)
        return _allowed(node.perms, domid)[0]

    # Helpers

    def _node(self, path: str, domid: DomId, *, write: bool) -> Node:
        node = self.look(path)
        if node is None:
            self._check_parents(path, domid)
            raise Refusal(errno.ENOENT)
        self._check(node, domid, write=write)
        return node

    def _check_parents(self, path: str, domid: DomId) -> None:
        """What may not be read does not even say that it is missing."""
        while path != "/":
            path = parent_of(path)
            node = self.look(path)
            if node is not None:
                self._check(node, domid, write=False)
                return

    def _check(self, node: Node, domid: DomId, *, write: bool) -> None:
        if not _allowed(node.perms, domid)[write]:
            raise Refusal(errno.EACCES)

    def _create(self, path: str, value: bytes, domid: DomId) -> None:
        missing = [path]
        while (parent := self.look(parent_of(missing[-1]))) is None:
            missing.append(parent_of(missing[-1]))
        self._check(parent, domid, write=True)
        perms = parent.perms
        if domid != DOM0:
            perms = Permissions([perms[0]._replace(domid=domid), *perms[1:]])
            if self.owned[domid] + len(missing) > self.quotas.nodes:
                raise Refusal(errno.ENOSPC)
        above = parent_of(missing[-1])
        top = missing[-1].rpartition("/")[2]
        self.put(above, parent._replace(children=(*parent.children, top), generation=self.stamp()))
        children: tuple[str, ...] = ()
        for new in missing:
            self.put(new, Node(value, perms, children, self.stamp()))
            value, children = b"", (new.rpartition("/")[2],)

    def _remove(self, path: str) -> list[Change]:
        gone: list[Change] = []
        todo = [path]
        while todo:
            current = todo.pop()
            node = self.look(current)
            if node is not None:
                todo += [f"{current}/{child}" for child in node.children]
                self.put(current, None)
                gone.append(Change(current, exact=current != path, perms=node.perms))
        return gone


class Snapshot(Tree):
    """A transaction: its own changes over what it has seen of the tree."""

    def __init__(self, base: Tree) -> None:
        self.base = base
        self.seen: dict[str, Node | None] = {}
        self.changes: list[Change] = []
        super().__init__(base.quotas, owned=base.owned.copy())
        self.nodes.clear()
        self._own: dict[str, Node | None] = {}

    def look(self, path: str) -> Node | None:
        if path in self._own:
            return self._own[path]
        if path not in self.seen:
            self.seen[path] = self.base.look(path)
        return self.seen[path]

    def put(self, path: str, node: Node | None) -> None:
        self._own[path] = node

    def stamp(self) -> int:
        return self.base.stamp()

    def commit(self) -> list[Change]:
        """Do it.  Raises `Refusal` (EAGAIN) if anything that was seen is another now."""
        if any(self.base.look(path) is not node for path, node in self.seen.items()):
            raise Refusal(errno.EAGAIN)
        for path, node in self._own.items():
            self.base.put(path, node)
        return self.changes


def _allowed(perms: Permissions, domid: DomId) -> tuple[bool, bool]:
    """May it read, may it write?"""
    if domid in (DOM0, perms.owner):
        return True, True
    for entry in perms[1:]:
        if entry.domid == domid:
            return entry.read, entry.write
    return perms[0].read, perms[0].write
