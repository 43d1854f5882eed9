# SPDX-License-Identifier: MIT
"""What can be done with nodes of XenStore, in a transaction or outside.

`Reader` and `Writer` know operations and payloads (docs/misc/xenstore.txt); how a request
gets to xenstored is their subclasses' affair (`xenstore`).
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeAlias, TypeVar

from xenpy.errors import PeerError, XenError, XenNotFoundError, XenPermissionError
from xenpy.paths import Permissions, check_path
from xenpy.store_pyxs import Op
from xenpy.store_wire import DIRECTORY_MAX, join_strings, parse_directory_part, split_strings

__all__ = ["TREE_LIMIT", "Reader", "Writer"]

T = TypeVar("T")

_Names: TypeAlias = list[str]  # in `Reader`, `list` is something else

TREE_LIMIT: Final = 1024
"""Nodes that `read_tree` reads unless told otherwise."""
_BATCH: Final = 64
_RESTARTS: Final = 16


class Reader(ABC):
    """The half that changes nothing."""

    @abstractmethod
    async def _ask(self, op: Op, path: str, payload: bytes) -> bytes:
        """Send a request about `path`; return the answer's payload."""

    async def read_bytes(self, path: str) -> bytes:
        """A node's value: any bytes, `b""` included.

        Raises:
            XenNotFoundError: there is no such node.
            XenPermissionError: its permissions forbid it.
        """
        return await self._ask(Op.READ, path, join_strings(check_path(path)))

    async def read(self, path: str) -> str:
        """A node's value as text: UTF-8 with surrogateescape, so that any bytes survive.

        Raises:
            XenNotFoundError: there is no such node.
            XenPermissionError: its permissions forbid it.
        """
        return (await self.read_bytes(path)).decode("utf-8", "surrogateescape")

    async def get(self, path: str, default: str | None = None) -> str | None:
        """A node's value, or `default` if there is no such node."""
        try:
            return await self.read(path)
        except XenNotFoundError:
            return default

    async def exists(self, path: str) -> bool:
        """Is there such a node?"""
        return await self.get(path) is not None

    async def list(self, path: str) -> _Names:
        """Names of a node's children, in xenstored's order.

        C xenstored gives a list over 4 KiB in parts, and starts over when it changes
        meanwhile.  oxenstored has no parts: it gives all at once on a socket, and refuses on
        /dev/xen/xenbus.

        Raises:
            XenNotFoundError: there is no such node.
            XenError: E2BIG: longer than `DIRECTORY_MAX`, or oxenstored refuses;
                EAGAIN: it changed all the time while it was read.
        """
        target = join_strings(check_path(path))
        try:
            return split_strings(await self._ask(Op.DIRECTORY, path, target))
        except XenError as error:
            if error.errno != errno.E2BIG:
                raise
            too_big = error
        for _ in range(_RESTARTS):
            names = await self._list_parts(path, target, too_big)
            if names is not None:
                return names
        raise XenError(errno.EAGAIN, "directory_part", "it never stands still", path=path)

    async def _list_parts(self, path: str, target: bytes, too_big: XenError) -> _Names | None:
        """All parts of one generation, or None if it changed between two of them."""
        whole = bytearray()
        generation: str | None = None
        while len(whole) <= DIRECTORY_MAX:
            try:
                payload = target + join_strings(b"%d" % len(whole))
                answer = await self._ask(Op.DIRECTORY_PART, path, payload)
            except XenError as error:
                if error.errno in (errno.EINVAL, errno.ENOSYS):
                    raise too_big from error  # oxenstored does not know the operation
                raise
            current, part, last = parse_directory_part(answer)
            if generation not in (None, current):
                return None
            generation = current
            whole += part
            if last:
                return split_strings(bytes(whole))
            if not part:
                raise PeerError("xenstored sends an empty part of a directory")
        raise XenError(errno.E2BIG, "directory_part", f"over {DIRECTORY_MAX} bytes", path=path)

    async def get_perms(self, path: str) -> Permissions:
        """A node's permissions.  Takes `@releaseDomain` and `@introduceDomain` as well."""
        answer = await self._ask(Op.GET_PERMS, path, join_strings(check_path(path, special=True)))
        text = answer.decode("ascii", "replace")
        try:
            return Permissions.parse(text)
        except ValueError as error:
            raise XenError(errno.EPROTO, "get_perms", str(error), path=path) from error

    async def read_tree(self, path: str, depth: int = 1, limit: int = TREE_LIMIT) -> dict[str, str]:
        """Everything below a node, down to `depth` levels.

        Returns:
            Value by path relative to `path`.  Nodes that vanish meanwhile or may not be
            read are left out.

        Raises:
            XenNotFoundError: there is no node `path`.
            PeerError: there are more than `limit` nodes.
        """
        found: dict[str, str] = {}
        level = await self.list(path)
        count = 0
        for remaining in range(depth, 0, -1):
            count += len(level)
            if count > limit:
                raise PeerError(f"{path} has more than {limit} nodes below it")
            present: _Names = []
            for batch in _cut(level):
                for name, value in await _each(batch, path, self.read):
                    found[name] = value
                    present.append(name)
            level.clear()
            for batch in _cut(present if remaining > 1 else []):
                for parent, names in await _each(batch, path, self.list):
                    level += [f"{parent}/{name}" for name in names]
                if count + len(level) > limit:
                    break
        return found


class Writer(Reader):
    """Reader, and the other half."""

    async def write(self, path: str, value: str | bytes | int) -> None:
        """Set a node's value; it is made, with its parents, if it is not there.

        Raises:
            XenPermissionError: permissions forbid it.
            XenError: E2BIG: path and value exceed one packet (4096 bytes); ENOSPC: a quota.
        """
        await self._ask(Op.WRITE, path, join_strings(check_path(path)) + _encode(value))

    async def mkdir(self, path: str) -> None:
        """Make a node with its parents; harmless when it is there."""
        await self._ask(Op.MKDIR, path, join_strings(check_path(path)))

    async def rm(self, path: str) -> bool:
        """Remove a node with all below it.

        Returns:
            False if not even the node above it is there.
        """
        try:
            await self._ask(Op.RM, path, join_strings(check_path(path)))
        except XenNotFoundError:
            return False
        return True

    async def set_perms(self, path: str, perms: Permissions | str) -> None:
        """Replace a node's permissions, e.g. `n0,r3`.

        Raises:
            ValueError: they cannot be read.
        """
        permissions = Permissions.parse(perms) if isinstance(perms, str) else perms
        target = join_strings(check_path(path, special=True))
        await self._ask(Op.SET_PERMS, path, target + permissions.encode())


def _encode(value: str | bytes | int) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(value).encode("utf-8", "surrogateescape")


def _cut(names: _Names) -> Iterator[_Names]:
    return (names[start : start + _BATCH] for start in range(0, len(names), _BATCH))


async def _each(
    names: _Names, path: str, call: Callable[[str], Awaitable[T]]
) -> list[tuple[str, T]]:
    """Ask about each at the same time; leave out what has gone or is forbidden."""
    results: list[tuple[str, T]] = []
    outcomes = await asyncio.gather(
        *(call(f"{path}/{name}") for name in names), return_exceptions=True
    )
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, XenNotFoundError | XenPermissionError):
            continue
        if isinstance(outcome, BaseException):
            raise outcome
        results.append((name, outcome))
    return results
