# SPDX-License-Identifier: MIT
"""A backend in a dozen lines: a class with a protocol and a method.

    class EchoBackend(Backend[Request, Response]):
        protocol = ECHO

        def handle(self, request: Request) -> Response:
            return Response(request.id, 0)

`xenpy run FILE.py` serves it, `xenpy.testing.ring.both` runs it over the fakes.
"""

from __future__ import annotations

import asyncio
import errno
import traceback
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, Generic

from xenpy.attach import NO_SETTINGS
from xenpy.backend import Device, DeviceContext, Keys, Recorded, open_restricted
from xenpy.driver import Driver
from xenpy.errors import PeerError, XenError
from xenpy.gnttab import CopySegment, GrantTable
from xenpy.gnttab import Mapping as PageMapping
from xenpy.memory import LocalMemory
from xenpy.own_backend import OwnBackend, call_hook, own_driver
from xenpy.own_trace import own_decode
from xenpy.ring_keys import MAX_QUEUES, MAX_RING_PAGE_ORDER, read_rings
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol
from xenpy.ring_server import RingServer
from xenpy.suggest import Suggestions
from xenpy.types import PAGE_SIZE, GrantRef
from xenpy.wire import CAbi

__all__ = ["Backend", "driver_of"]

LIMIT_OF_ERRNO: Final = 4096
KEPT: Final = 32
"""Pages of one device that slices may keep mapped."""


class Backend(OwnBackend, Generic[RequestT, ResponseT]):
    """One device, and what `OwnBackend` has.

    Everything runs in the event loop.  What is raised in `handle` costs that request: an OSError
    is answered with its errno, NotImplementedError with EOPNOTSUPP, anything else is logged and
    answered with EIO.

    Attributes:
        protocol: what is spoken.
        max_inflight: requests of a ring that are being worked on at a time.
    """

    protocol: RingProtocol[RequestT, ResponseT]
    max_inflight: int = 32

    def __init__(self, context: DeviceContext) -> None:
        super().__init__(context)
        self.grants: GrantTable | None = None
        self._kept: list[PageMapping] = []

    @classmethod
    def spoken(cls) -> RingProtocol[RequestT, ResponseT]:
        """`protocol`, of the class."""
        return cls.protocol

    def handle(self, request: RequestT) -> ResponseT | Awaitable[ResponseT]:
        """Answer a request: a private copy, whose numbers may be anything.

        `def`, or `async def` for what waits: other requests are taken meanwhile, and answers
        may overtake each other.  What blocks holds up every device.
        """
        raise NotImplementedError

    def handle_batch(self, requests: Sequence[RequestT]) -> Sequence[ResponseT]:
        """Answer all requests that came together, `max_inflight` at most, instead of each by
        `handle`: a backend that has this is called once for what one event has brought.

        What it raises is the answer to every one of them.

        Returns:
            Their responses, in their order.
        """
        raise NotImplementedError

    async def connect(self) -> None:
        """A frontend has come; `frontend` has its keys.  Its requests are taken after this.

        Raises:
            PeerError: they make no sense.
        """

    async def disconnect(self) -> None:
        """It has gone, and nothing of its is in flight.  Follows each `connect` that returned."""

    @contextmanager
    def map(self, ref: int, *, writable: bool = False) -> Generator[memoryview]:
        """A page of the frontend's, which it may change at any time: look at each byte once.

        A slice of it that outlives this keeps the page mapped until the next `map`; there may be
        `KEPT` of those.

        Raises:
            XenError: it has not granted it, or not for writing; EINVAL, there is no such number;
                ENOMEM, too many slices are kept.
        """
        kept, self._kept = self._kept, []
        for page in kept:
            self._unmap(page)
        if len(self._kept) >= KEPT:
            raise XenError(errno.ENOMEM, "map", "slices of mapped pages are kept", pages=KEPT)
        page = self._grants().map(self.context.domid, [_ref(ref)], writable=writable)
        try:
            with page.view() as view:
                yield view
        finally:
            self._unmap(page)

    def read(self, ref: int, length: int, offset: int = 0) -> bytes:
        """A copy out of a page of the frontend's.

        Raises:
            XenError: it has not granted it; or EINVAL, the place is not within a page.
        """
        with LocalMemory(PAGE_SIZE) as local, local.view() as view:
            foreign = self.context.domid, _ref(ref), offset
            self._copy(CopySegment(foreign, (local, 0), length))
            return bytes(view[:length])

    def write(self, ref: int, content: bytes | bytearray | memoryview, offset: int = 0) -> None:
        """A copy into a page of the frontend's; raises as `read` does."""
        length = len(content)
        with LocalMemory(PAGE_SIZE) as local:
            with local.view() as view:
                view[: min(length, PAGE_SIZE)] = content[:PAGE_SIZE]
            foreign = self.context.domid, _ref(ref), offset
            self._copy(CopySegment((local, 0), foreign, length))

    def let_go(self) -> None:
        """Unmap what slices have kept: at once, or when they die.  For the framework."""
        kept, self._kept = self._kept, []
        for page in kept:
            self.context.deferred.close(page, self.context.name)
        if self.grants is not None:
            self.context.deferred.close(self.grants, self.context.name)
        self.grants = None

    def failed(self, request: RequestT, error: Exception) -> ResponseT:
        """The response to a request whose `handle` raised."""
        log = self.context.log
        if isinstance(error, NotImplementedError):
            log.info("%r: nobody handles it", request)
            return self.protocol.failure(request, errno.EOPNOTSUPP)
        if not isinstance(error, OSError):
            log.error("%r\n%s", request, "".join(traceback.format_exception(error)))
            return self.protocol.failure(request, errno.EIO)
        log.info("%r: %s", request, error)
        found: object = error.errno
        if not isinstance(found, int) or not 0 < found < LIMIT_OF_ERRNO:
            found = errno.EIO
        return self.protocol.failure(request, found)

    def _grants(self) -> GrantTable:
        if self.grants is None:
            raise XenError(errno.ENOTCONN, "map", "no frontend is connected")
        return self.grants

    def _unmap(self, page: PageMapping) -> None:
        try:
            page.close()
        except BufferError:
            self._kept.append(page)

    def _copy(self, segment: CopySegment) -> None:
        if segment.length == 0:
            return
        try:
            (status,) = self._grants().copy([segment])
        except ValueError as error:
            raise XenError(errno.EINVAL, "grant_copy", str(error)) from error
        if status:
            raise XenError(errno.EFAULT, "grant_copy", f"GNTST {status}")


class RingDevice(Device, Generic[RequestT, ResponseT]):
    """A `Backend` as the framework sees it."""

    def __init__(
        self,
        context: DeviceContext,
        backend: Backend[RequestT, ResponseT],
        suggestions: Suggestions | None,
    ) -> None:
        super().__init__(context)
        self._backend = backend
        self._suggestions = suggestions
        self._servers: list[RingServer[RequestT, ResponseT]] = []
        self._held = ExitStack()
        self._layout = ""
        self._requests = self._notifications = 0

    async def prepare(self) -> Keys:
        protocol = self._backend.protocol
        return {
            # Also if it is 0: a key that an earlier version has left would promise more.
            MAX_RING_PAGE_ORDER: protocol.max_ring_page_order,
            MAX_QUEUES: protocol.max_rings,
            **self._backend.published(),
        }

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        backend, xen, domid = self._backend, self.context.xen, self.context.domid
        protocol = backend.protocol
        places = read_rings(
            frontend, max_ring_page_order=protocol.max_ring_page_order, max_rings=protocol.max_rings
        )
        abi = _abi_of(frontend)
        suggestions = self._suggestions
        backend.frontend = suggestions.watched(frontend) if suggestions else frontend
        servers: list[RingServer[RequestT, ResponseT]] = []
        with ExitStack() as held:
            held.callback(backend.let_go)
            backend.grants = xen.open_grants()
            for place in places:
                server = RingServer(
                    protocol, abi, backend.handle, _batch_of(backend), self._failed,
                    backend.max_inflight, self.context.on_failure,
                )  # fmt: skip
                channels = held.enter_context(open_restricted(xen, domid))
                server.open(backend.grants, channels, domid, place.refs, place.port)
                held.callback(server.close)
                servers.append(server)
            await call_hook(backend.connect, (PeerError,))
            self._held = held.pop_all()
        self._servers, self._layout = servers, abi.protocol
        for server in servers:
            server.start()
        return {}

    async def disconnect(self) -> None:
        servers = self._servers
        if not servers:
            return
        await asyncio.gather(*(server.stop() for server in servers))
        self._servers = []
        for server in servers:
            self._requests += server.requests
            self._notifications += server.notifications
        self._held.close()
        try:
            await self._backend.disconnect()
        except Exception as error:
            # Somebody's hook: the device is let go of in any case.
            self.context.log.error("disconnect: %s: %s", type(error).__name__, error)

    async def refresh(self) -> Keys:
        return await call_hook(self._backend.reconfigure)

    async def close(self) -> None:
        """Nothing outlives a connection."""

    def _failed(self, request: RequestT, error: Exception) -> ResponseT:
        if self._suggestions is not None and isinstance(error, NotImplementedError):
            self._suggestions.unhandled(request)
        return self._backend.failed(request, error)

    def recorded(self) -> Recorded | None:
        if not self._servers:
            return None
        return Recorded(self._layout, [server.trace for server in self._servers])

    def stats(self) -> Mapping[str, int]:
        return {
            "requests": self._requests + sum(server.requests for server in self._servers),
            "notifications": self._notifications
            + sum(server.notifications for server in self._servers),
        }


def _ref(number: int) -> GrantRef:
    """A reference as a request has it: any number."""
    if number >> 32:
        raise XenError(errno.EINVAL, "grant", "a reference has 32 bits", ref=number)
    return GrantRef(number)


def _batch_of(
    backend: Backend[RequestT, ResponseT],
) -> Callable[[Sequence[RequestT]], Sequence[ResponseT]] | None:
    """`handle_batch`, if the class has one of its own."""
    classes = (cls for cls in type(backend).__mro__ if cls is not Backend)
    own = any("handle_batch" in vars(cls) for cls in classes)
    return backend.handle_batch if own else None


def _abi_of(frontend: Mapping[str, str]) -> CAbi:
    name = frontend.get("protocol")
    try:
        return CAbi.native() if name is None else CAbi.of_protocol(name)
    except ValueError as error:
        raise PeerError(str(error)) from error


def driver_of(
    make: Callable[[DeviceContext], Backend[RequestT, ResponseT]],
    protocol: RingProtocol[RequestT, ResponseT],
    suggestions: Suggestions | None = None,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> Driver:
    """What `xenpy serve` and `xenpy attach` know a backend by.

    `xenpy attach NAME DOMID [devid=N] [SETTING=...]` makes a device of it.

    Args:
        make: a backend's class, or what makes one of it.
        suggestions: collects what it does not look at.
        settings: of that class.
    """
    return own_driver(
        protocol.name,
        settings,
        lambda context: RingDevice(context, make(context), suggestions),
        own_decode(protocol),
    )
