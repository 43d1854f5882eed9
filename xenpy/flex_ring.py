# SPDX-License-Identifier: MIT
"""The two byte rings of DEFINE_XEN_FLEX_RING_AND_INTF (ring.h), which 9pfs and PV calls use too.

One page has the indices and the grants of the pages with the bytes; of those, the first half is
`in`, what the backend says, and the second half is `out`, what the frontend says.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from xenpy.errors import PeerError
from xenpy.memory import Memory
from xenpy.ring import StreamIn, StreamOut
from xenpy.types import PAGE_SHIFT, GrantRef

__all__ = ["MAX_RING_ORDER", "FlexRing", "pack_interface", "parse_interface"]

MAX_RING_ORDER: Final = 9
"""2 MiB, a half for each direction: the grants of more do not fit into the page."""

IN_CONS, IN_PROD, OUT_CONS, OUT_PROD, RING_ORDER, REF = 0, 4, 64, 68, 128, 132


def pack_interface(refs: Sequence[GrantRef]) -> bytes:
    """The frontend's page, with both rings empty.

    Args:
        refs: of the data pages: 2, 4, 8 ... 512.
    """
    order = len(refs).bit_length() - 1
    if not 1 <= order <= MAX_RING_ORDER or len(refs) != 1 << order:
        raise ValueError(f"{len(refs)} pages; 2, 4, 8 ... {1 << MAX_RING_ORDER} it can be")
    return struct.pack(f"=128xI{len(refs)}I", order, *refs)


def parse_interface(content: bytes, max_order: int) -> list[GrantRef]:
    """The grants of the data pages, out of a private copy of the page.

    Raises:
        PeerError: `ring_order` is not 1 to `max_order`.
    """
    (order,) = struct.unpack_from("=I", content, RING_ORDER)
    if not 1 <= order <= max_order:
        raise PeerError(f"ring_order is {order}; it can be 1 to {max_order}")
    return [GrantRef(ref) for ref in struct.unpack_from(f"={1 << order}I", content, REF)]


class FlexRing(NamedTuple):
    """One end of the two rings.

    Attributes:
        taken: what the other end says.
        put: what we say.
    """

    taken: StreamIn
    put: StreamOut

    @classmethod
    def backend(cls, interface: Memory, data: Memory) -> Self:
        half = _half(data)
        return cls(
            StreamIn(interface, data=half, size=half, cons=OUT_CONS, prod=OUT_PROD, data_in=data),
            StreamOut(interface, data=0, size=half, prod=IN_PROD, cons=IN_CONS, data_in=data),
        )

    @classmethod
    def frontend(cls, interface: Memory, data: Memory) -> Self:
        half = _half(data)
        return cls(
            StreamIn(interface, data=0, size=half, cons=IN_CONS, prod=IN_PROD, data_in=data),
            StreamOut(interface, data=half, size=half, prod=OUT_PROD, cons=OUT_CONS, data_in=data),
        )


def _half(data: Memory) -> int:
    if data.size < 2 << PAGE_SHIFT:
        raise ValueError(f"{data.size} bytes; two pages at least")
    return data.size // 2
