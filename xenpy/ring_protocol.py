# SPDX-License-Identifier: MIT
"""A protocol of your own over one ring: what a request and a response look like.

    class Request(NamedTuple):
        id: u64
        length: u16

    class Response(NamedTuple):
        id: u64
        status: i16

    ECHO = RingProtocol("echo", Request, Response)

Sans-IO.  The ring is ring.h's, of one page or of several, a slot as large as the larger of the
two.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from xenpy.ring import RingLayout
from xenpy.wire import CAbi, Record, fields_of

__all__ = ["Codec", "RequestT", "ResponseT", "RingProtocol", "check_name"]

RequestT = TypeVar("RequestT", bound=tuple[int, ...])
ResponseT = TypeVar("ResponseT", bound=tuple[int, ...])

MAX_RING_PAGE_ORDER: Final = 4
MAX_RINGS: Final = 64
ID: Final = "id"
STATUS: Final = "status"
SIGNED: Final = {"h", "i", "q"}
"""What an errno fits into."""


class Codec(Generic[RequestT, ResponseT]):
    """The bytes of a protocol for one ABI.

    Attributes:
        abi: the frontend's.
        layout: sizes, for a ring.
    """

    def __init__(self, abi: CAbi, request: type[RequestT], response: type[ResponseT]) -> None:
        self.abi = abi
        self._request: Callable[..., RequestT] = request
        self._response: Callable[..., ResponseT] = response
        self._requests = Record(abi, fields_of(request))
        self._responses = Record(abi, fields_of(response))
        # A slot is a union of the two, aligned as the stricter one.
        alignment = max(self._requests.alignment, self._responses.alignment)
        sizes = (
            -(-record.size // alignment) * alignment for record in (self._requests, self._responses)
        )
        self.layout = RingLayout(*sizes)

    def request(self, slot: bytes) -> RequestT:
        """What a private copy of a slot says."""
        return self._request(*self._requests.unpack(slot))

    def response(self, slot: bytes) -> ResponseT:
        """What a private copy of a slot says."""
        return self._response(*self._responses.unpack(slot))

    def known(self, request: bytes, response: bytes) -> dict[str, int]:
        """What the first bytes of two slots say, for people: the fields of the request, then those
        of its answer but for the id; one that both have is `answered_NAME` of the answer."""
        asked, answered = self._requests.known(request), self._responses.known(response)
        answered.pop(ID, None)
        return asked | {
            f"answered_{name}" if name in asked else name: value for name, value in answered.items()
        }

    def pack_request(self, request: RequestT) -> bytes:
        """Raises ValueError: a value does not fit its field."""
        return _pack(self._requests, request).ljust(self.layout.request_size, b"\0")

    def pack_response(self, response: ResponseT) -> bytes:
        """Raises ValueError: a value does not fit its field."""
        return _pack(self._responses, response).ljust(self.layout.response_size, b"\0")


class RingProtocol(Generic[RequestT, ResponseT]):
    """Two records and a name.

    Args:
        name: of the device's kind in XenStore, `device/NAME` and `backend/NAME`: a-z, 0-9, _
            and -, a letter first.
        request, response: NamedTuples of u8 ... i64, a page at most.  Both have an `id` of one
            width, by which an answer finds its question.
        failure: makes the response to a request that failed with an errno.  Without it
            `response` has a signed `status` of 16 bits or more, which is -errno then; fields
            that both have, which are of one width too, are copied, and all else is 0.
        max_ring_page_order: a ring may have up to 2 to the power of this pages, 0 to 4; both
            sides say what they can (`max-ring-page-order`, `ring-page-order`), as blkif's do.
        max_rings: a device may have up to so many rings, 1 to 64, each with an event channel;
            both sides say what they can here too (`multi-queue-max-queues`,
            `multi-queue-num-queues`).

    Raises:
        TypeError, ValueError: one of them is not as it says above.
    """

    def __init__(
        self,
        name: str,
        request: type[RequestT],
        response: type[ResponseT],
        *,
        failure: Callable[[RequestT, int], ResponseT] | None = None,
        max_ring_page_order: int = 0,
        max_rings: int = 1,
    ) -> None:
        check_name(name)
        if not 0 <= max_ring_page_order <= MAX_RING_PAGE_ORDER:
            raise ValueError(f"max_ring_page_order is {max_ring_page_order}; 0 to 4 it can be")
        if not 1 <= max_rings <= MAX_RINGS:
            raise ValueError(f"max_rings is {max_rings}; 1 to {MAX_RINGS} it can be")
        self.name = name
        self.max_ring_page_order = max_ring_page_order
        self.max_rings = max_rings
        self.request, self.response = request, response
        self._make_response: Callable[..., ResponseT] = response
        asked, answered = fields_of(request), fields_of(response)
        for record, fields in ((request, asked), (response, answered)):
            if ID not in fields:
                raise TypeError(f"{record.__name__} has no id")
        if failure is None and answered.get(STATUS, "") not in SIGNED:
            text = "has no status that takes -errno, i16 or more; give it one, or say failure="
            raise TypeError(f"{response.__name__} {text}")
        for field in [ID] if failure else [key for key in asked if key != STATUS]:
            if field in answered and answered[field] != asked[field]:
                text = f"{field} is not of one width in request and response"
                raise TypeError(f"{text}; name one otherwise, or say failure=")
        self._failure = failure or self._negative_errno
        self._asked, self._answered = list(asked), list(answered)
        self._id_asked = self._asked.index(ID)
        self._id_answered = self._answered.index(ID)
        self.codec().layout.entries(1)

    def __repr__(self) -> str:
        return f"RingProtocol({self.name!r})"

    def codec(self, abi: CAbi | None = None) -> Codec[RequestT, ResponseT]:
        """Its bytes, as `abi` lays them out; by default this process's."""
        return Codec(abi or CAbi.native(), self.request, self.response)

    def id_of_request(self, request: RequestT) -> int:
        return request[self._id_asked]

    def id_of_response(self, response: ResponseT) -> int:
        return response[self._id_answered]

    def failure(self, request: RequestT, number: int) -> ResponseT:
        """The response that says errno `number`."""
        return self._failure(request, number or errno.EIO)

    def _negative_errno(self, request: RequestT, number: int) -> ResponseT:
        known = dict(zip(self._asked, request, strict=True)) | {STATUS: -number}
        return self._make_response(*(known.get(name, 0) for name in self._answered))


def check_name(name: str) -> None:
    """Raises ValueError: it is no name for a kind of one's own."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", name):
        raise ValueError(f"{name!r} is no name of a kind: a-z, 0-9, _ and -, a letter first")


def _pack(record: Record, values: tuple[int, ...]) -> bytes:
    try:
        return record.pack(*values)
    except Exception as error:
        # struct.error is no ValueError, and says nothing of whose values they were.
        raise ValueError(f"{values!r} does not fit: {error}") from error
