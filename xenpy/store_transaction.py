# SPDX-License-Identifier: MIT
"""Transactions of XenStore: all or nothing, tried again after a conflict, but not for ever.

docs/misc/xenstore.txt, "Transactions".  xenstored answers the end of a transaction with
EAGAIN if anything that it touched was changed by somebody else meanwhile; a guest that
changes its keys all the time can see to that (XSA-206).
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

from xenpy.errors import StaleHandleError, XenError
from xenpy.store_connection import StoreConnection
from xenpy.store_nodes import Writer
from xenpy.store_pyxs import Op
from xenpy.store_wire import join_strings

__all__ = ["Ready", "Transaction", "small_number", "transact"]

T = TypeVar("T")

Ready: TypeAlias = Callable[[str], Awaitable[StoreConnection]]
"""Gives the connection to use, given what for."""

_CONFLICT_FIRST: Final = 0.001
_CONFLICT_LIMIT: Final = 0.1
"""Seconds of pause after a conflict: doubled, with jitter."""


class Transaction(Writer):
    """All or nothing.  Made by `Store.transact`, and of no use after it."""

    def __init__(self, connection: StoreConnection, tx_id: int, timeout: float) -> None:
        self._connection = connection
        self._tx_id = tx_id
        self._timeout = timeout
        self._open = True
        self.paths: set[str] = set()
        """What was asked about so far."""

    async def _ask(self, op: Op, path: str, payload: bytes) -> bytes:
        if not self._open:
            raise StaleHandleError(errno.EBADF, op.name.lower(), "the transaction is over")
        self.paths.add(path)
        return await self._connection.request(
            op, payload, tx_id=self._tx_id, timeout=self._timeout, path=path
        )

    def abort(self) -> None:
        """Forget all of it.  Does not wait, so that it works while being cancelled."""
        self._open = False
        self._connection.post(Op.TRANSACTION_END, join_strings(b"F"), tx_id=self._tx_id)

    async def commit(self) -> bool:
        """Returns False on a conflict with somebody else's change."""
        self._open = False
        try:
            await self._connection.request(
                Op.TRANSACTION_END, join_strings(b"T"), tx_id=self._tx_id, timeout=self._timeout
            )
        except XenError as error:
            if error.errno == errno.EAGAIN:
                return False
            raise
        return True


async def transact(
    ready: Ready, fn: Callable[[Transaction], Awaitable[T]], attempts: int, timeout: float
) -> T:
    """See `Store.transact`."""
    for attempt in range(attempts):
        if attempt:
            pause = min(_CONFLICT_LIMIT, _CONFLICT_FIRST * 2**attempt)
            await asyncio.sleep(random.uniform(0.0, pause))
        tx = await _begin(ready, timeout, last=attempt + 1 == attempts)
        if tx is None:
            continue
        try:
            result = await fn(tx)
        except XenError as error:
            tx.abort()
            if error.errno != errno.EAGAIN:
                raise
            continue
        except BaseException:
            tx.abort()
            raise
        if await tx.commit():
            return result
    hint = f"in conflict with somebody else's changes {attempts} times"
    raise XenError(errno.EAGAIN, "transact", hint)


async def _begin(ready: Ready, timeout: float, *, last: bool) -> Transaction | None:
    """Open a transaction, or None if this domain has too many of them open (a quota,
    which the others that are open now will soon give back)."""
    connection = await ready("transaction_start")
    try:
        answer = await connection.request(Op.TRANSACTION_START, join_strings(b""), timeout=timeout)
    except XenError as error:
        if error.errno == errno.ENOSPC and not last:
            return None
        raise
    text = answer.rstrip(b"\0").decode("ascii", "replace")
    tx_id = small_number("transaction_start", text, 0xFFFFFFFF)
    return Transaction(connection, tx_id, timeout)


def small_number(operation: str, text: str, limit: int) -> int:
    """A number that xenstored gives as text."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= limit):
        raise XenError(errno.EPROTO, operation, "no number", answer=text[:16])
    return int(text)
