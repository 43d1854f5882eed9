# SPDX-License-Identifier: MIT
"""XenStore for asyncio: time-outs, transactions, watches, and reconnecting by itself.

Implements docs/misc/xenstore.txt over a socket of xenstored or /dev/xen/xenbus.

    async with Store.open() as store:
        await store.write("/local/domain/0/hello", "world")
        async with store.watch("/local/domain/0/hello") as watch:
            async for paths in watch:
                ...
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import warnings
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, TypeVar

from xenpy.errors import StaleHandleError, XenConnectionError, XenError, XenTimeoutError
from xenpy.paths import check_path
from xenpy.store_connection import StoreConnection
from xenpy.store_nodes import Reader, Writer
from xenpy.store_pyxs import Op, connect, default_path
from xenpy.store_transaction import Transaction, small_number, transact
from xenpy.store_wait import NotYet, Waiting
from xenpy.store_watch import Subscriber, Subscription, Watch
from xenpy.store_wire import join_strings
from xenpy.types import DOM0, DOMID_FIRST_RESERVED, DomId

__all__ = ["NotYet", "Reader", "Store", "Transaction", "Watch", "Writer"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF_FIRST: Final = 0.02
_BACKOFF_LIMIT: Final = 2.0
"""Seconds between two attempts to reconnect: doubled, with jitter."""


class Store(Writer):
    """A connection to xenstored that mends itself.

    A request fails with `XenTimeoutError` after `timeout` seconds in which xenstored answered
    nothing (a request among a thousand may wait longer, as long as others get theirs), with
    `XenConnectionError` when the connection breaks under it or is not back within
    `timeout`; it is never sent twice.  Watches survive: they are armed again, and told that
    anything may have changed.

    Not to be shared between event loops, nor used after fork.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._connection: StoreConnection | None = None
        self._connected = asyncio.Event()
        self._closed = False
        self._mending: asyncio.Task[None] | None = None
        self._watches: dict[str, Subscription] = {}
        self._tokens = 0
        self.on_reconnect: list[Callable[[], None]] = []
        """Called after each reconnect, with every watch armed again."""
        self.reconnects = 0

    @classmethod
    def open(cls, path: str | None = None, timeout: float = 5.0) -> Store:
        """Make a store; `async with` connects it.

        Args:
            path: xenstored's socket or /dev/xen/xenbus; None: XENSTORED_PATH or
                XENSTORED_RUNDIR, else whichever of the two is there, the socket first.
            timeout: seconds for each request, reconnecting included.

        Raises:
            XenNotFoundError: nothing is there.
        """
        return cls(path or default_path(), timeout)

    async def __aenter__(self) -> Store:
        deadline = asyncio.get_running_loop().time() + self._timeout
        await self._connect(deadline)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.connected else "disconnected"
        return f"<Store {self._path} {state}, {len(self._watches)} watches>"

    def __del__(self) -> None:
        if self._connection is not None and not self._closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    @property
    def path(self) -> str:
        """The socket or device."""
        return self._path

    @property
    def timeout(self) -> float:
        """Seconds that a request may take."""
        return self._timeout

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def close(self) -> None:
        """Close; requests in flight and watches fail.  Harmless when closed already."""
        self._closed = True
        mending, self._mending = self._mending, None
        if mending is not None:
            mending.cancel()
            await asyncio.wait([mending])
        connection, self._connection = self._connection, None
        self._connected.set()  # whoever waits for it finds the store closed
        for subscription in self._watches.values():
            subscription.subscriber.failed(self._stale("watch"))
        self._watches.clear()
        if connection is not None:
            await connection.close()

    # Single requests

    async def _ask(self, op: Op, path: str, payload: bytes) -> bytes:
        connection = await self._ready(op.name.lower())
        return await connection.request(op, payload, timeout=self._timeout, path=path)

    async def domid(self) -> DomId:
        """The domain that this runs in.

        Raises:
            XenError: EPROTO, XenStore says what no domid is.
        """
        text = await self.get("domid", str(DOM0))
        return DomId(small_number("domid", text or "", DOMID_FIRST_RESERVED - 1))

    async def is_domain_introduced(self, domid: DomId) -> bool:
        """Does xenstored know the domain?  False soon after its death."""
        connection = await self._ready("is_domain_introduced")
        answer = await connection.request(
            Op.IS_DOMAIN_INTRODUCED, join_strings(b"%d" % domid), timeout=self._timeout, domid=domid
        )
        return answer.startswith(b"T")

    async def get_domain_path(self, domid: DomId) -> str:
        """A domain's home, whether it lives or not: `/local/domain/DOMID`."""
        connection = await self._ready("get_domain_path")
        answer = await connection.request(
            Op.GET_DOMAIN_PATH, join_strings(b"%d" % domid), timeout=self._timeout, domid=domid
        )
        return answer.rstrip(b"\0").decode("utf-8", "surrogateescape")

    # Transactions

    async def transact(self, fn: Callable[[Transaction], Awaitable[T]], attempts: int = 16) -> T:
        """Run `fn` in a transaction, again if somebody else's change came between.

        Args:
            fn: may run several times; aborts by raising.
            attempts: how many times at most, with growing pauses.

        Raises:
            XenError: EAGAIN, a conflict each time.
            XenConnectionError: the connection was lost; if that was in the last step,
                the changes may have been made.
        """
        return await transact(self._ready, fn, attempts, self._timeout)

    async def wait(self, fn: Callable[[Reader], Awaitable[T]], timeout: float | None = None) -> T:
        """Run `fn` until it no longer raises `NotYet`: again whenever anything that it has
        asked about changes, or may have changed while the connection was lost.

        What `fn` reads in one run is one consistent snapshot.

        Raises:
            XenTimeoutError: not within `timeout` seconds; the hint says what `fn` last said.
            XenError: E2BIG, `fn` asks about more than 256 paths.
        """
        return await Waiting(self).run(fn, timeout)

    # Watches

    def watch(self, path: str) -> Watch:
        """Watch a node and everything below it, or `@releaseDomain`, `@introduceDomain`.

        Use as `async with store.watch(path) as watch: async for paths in watch: ...`.
        Entering raises `XenError` if xenstored refuses.  Without a connection it does not:
        the watch is armed when the connection is back.
        """
        check_path(path, special=True)
        return Watch(self, path)

    async def subscribe(self, path: str, subscriber: Subscriber) -> Subscription:
        """Arm a watch that calls `subscriber`.  For `Watch`; programs use `watch`."""
        if self._closed:
            raise self._stale("watch")
        self._tokens += 1
        subscription = Subscription(path, f"xenpy-{self._tokens}", subscriber)
        self._watches[subscription.token] = subscription
        connection = self._connection
        if connection is None:
            return subscription
        try:
            await self._arm(connection, subscription)
        except XenConnectionError:
            pass  # armed again with all the others
        except BaseException:
            await self.unsubscribe(subscription)
            raise
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Disarm a watch.  Events that are on their way are ignored from now on.

        Does not wait for xenstored, so that leaving a watch never fails or hangs.
        """
        if self._watches.pop(subscription.token, None) is None:
            return
        connection = self._connection
        if connection is not None and subscription.armed_on is connection:
            connection.post(Op.UNWATCH, _watch_payload(subscription))

    async def _arm(self, connection: StoreConnection, subscription: Subscription) -> None:
        subscription.armed_on = connection
        await connection.request(
            Op.WATCH, _watch_payload(subscription), timeout=self._timeout, path=subscription.path
        )

    def _event(self, path: str, token: str) -> None:
        subscription = self._watches.get(token)
        if subscription is not None:
            subscription.subscriber.changed(path)

    # The connection

    def _stale(self, operation: str) -> StaleHandleError:
        return StaleHandleError(errno.EBADF, operation, "the store is closed", path=self._path)

    async def _ready(self, operation: str) -> StoreConnection:
        """The connection; waits for a reconnect, but not for ever."""
        connection = self._connection
        if connection is not None:
            return connection
        if self._mending is None and not self._closed:
            hint = "enter the store first: async with Store.open() as store"
            raise StaleHandleError(errno.EBADF, operation, hint)
        try:
            async with asyncio.timeout(self._timeout):
                while not self._connected.is_set():
                    await self._connected.wait()
        except TimeoutError:
            raise XenConnectionError(errno.ENOTCONN, operation, "xenstored is away") from None
        connection = self._connection
        if connection is None:
            raise self._stale(operation)
        return connection

    async def _connect(self, deadline: float) -> None:
        """Connect, arm every watch, and only then let requests through."""
        while True:
            try:
                transport = connect(self._path)
                break
            except XenError as error:
                if error.errno != errno.EAGAIN or asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(_BACKOFF_FIRST)
        try:
            connection = StoreConnection(transport, on_event=self._event, on_lost=self._lost)
        except BaseException:
            transport.close()
            raise
        try:
            await self._arm_all(connection)
            # It may have broken since the last answer, and is nobody's yet to be mended.
            connection.check()
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        self._connected.set()

    async def _arm_all(self, connection: StoreConnection) -> None:
        # More may come while these are armed.
        while todo := [s for s in self._watches.values() if s.armed_on is not connection]:
            outcomes = await asyncio.gather(
                *(self._arm(connection, subscription) for subscription in todo),
                return_exceptions=True,
            )
            for subscription, outcome in zip(todo, outcomes, strict=True):
                if outcome is None:
                    # All may have changed while nobody looked.
                    subscription.subscriber.changed(subscription.path)
                elif isinstance(outcome, XenError) and not isinstance(
                    outcome, XenConnectionError | XenTimeoutError
                ):
                    self._watches.pop(subscription.token, None)
                    subscription.subscriber.failed(outcome)
                else:
                    raise outcome

    def _lost(self, connection: StoreConnection, error: XenError) -> None:
        if self._closed or connection is not self._connection:
            return
        log.warning("the connection to xenstored is lost: %s", error)
        self._connection = None
        self._connected.clear()
        self._mending = asyncio.get_running_loop().create_task(
            self._mend(connection), name="xenstore-reconnect"
        )

    async def _mend(self, broken: StoreConnection) -> None:
        await broken.close()
        pause = _BACKOFF_FIRST
        while True:
            try:
                await self._connect(asyncio.get_running_loop().time() + self._timeout)
                break
            except OSError as error:
                log.debug("cannot reconnect to xenstored: %s", error)
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(_BACKOFF_LIMIT, pause * 2)
        self.reconnects += 1
        log.info("connected to xenstored again, %d watches", len(self._watches))
        for call in list(self.on_reconnect):
            try:
                call()
            except Exception:
                log.exception("on_reconnect")


def _watch_payload(subscription: Subscription) -> bytes:
    path = subscription.path.encode("ascii")
    return join_strings(path, subscription.token.encode("ascii"))
