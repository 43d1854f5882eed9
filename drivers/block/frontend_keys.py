# SPDX-License-Identifier: MIT
"""The keys that a blkif frontend publishes, checked.  Pure.

Everything here is hostile input: a value may be any text, a key may be missing or of the
wrong sort.  Whatever is not exactly what blkif.h asks for is a `PeerError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.protocol import ABIS, Abi
from xenpy.errors import PeerError
from xenpy.types import GrantRef, Port

__all__ = ["MAX_RING_PAGE_ORDER", "FrontendKeys"]

MAX_RING_PAGE_ORDER: Final = 4
"""What we offer; Linux and QEMU offer the same."""
UINT32_MAX: Final = 2**32 - 1
SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class FrontendKeys:
    """What a frontend published.

    Attributes:
        ring_refs: the ring's pages in order; 1, 2, 4, 8 or 16, no two alike.
        event_channel: the frontend's port.
        abi: the layout it speaks.
        persistent: it keeps its grants, so that we may keep them mapped.
    """

    ring_refs: tuple[GrantRef, ...]
    event_channel: Port
    abi: Abi
    persistent: bool

    @classmethod
    def parse(cls, keys: Mapping[str, str]) -> FrontendKeys:
        """Check a snapshot of the frontend's directory.

        Raises:
            PeerError: a key is missing or is not what blkif.h says.
        """
        queues = _number(keys, "multi-queue-num-queues", default=1)
        if queues != 1:
            # We do not offer multi-queue-max-queues.
            raise PeerError(f"multi-queue-num-queues is {queues}, 1 was offered")
        refs = _ring_refs(keys)
        if len(set(refs)) != len(refs):
            raise PeerError("the same ring-ref is given twice")
        port = _number(keys, "event-channel")
        if port == 0:
            raise PeerError("event-channel is 0, which is never a port")
        protocol = keys.get("protocol", "native")
        abi = ABIS.get(protocol)
        if abi is None:
            raise PeerError(f"protocol {protocol[:SHOWN]!r} is unknown")
        persistent = _number(keys, "feature-persistent", default=0)
        if persistent > 1:
            raise PeerError(f"feature-persistent is {persistent}, neither 0 nor 1")
        return cls(refs, Port(port), abi, persistent == 1)


def _ring_refs(keys: Mapping[str, str]) -> tuple[GrantRef, ...]:
    """`ring-refK` for each of 2^`ring-page-order` pages, or, for one page, `ring-ref`."""
    order = _number(keys, "ring-page-order", default=0)
    if order > MAX_RING_PAGE_ORDER:
        raise PeerError(f"ring-page-order is {order}, {MAX_RING_PAGE_ORDER} was offered")
    if order == 0 and "ring-ref0" not in keys:
        return (GrantRef(_number(keys, "ring-ref")),)
    return tuple(GrantRef(_number(keys, f"ring-ref{page}")) for page in range(1 << order))


def _number(keys: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A plain decimal number of 32 bits: no sign, space, prefix or leading zero."""
    text = keys.get(name)
    if text is None:
        if default is None:
            raise PeerError(f"{name} is missing")
        return default
    plain = text.isascii() and text.isdigit() and len(text) <= 10
    if not plain or (text[0] == "0" and text != "0") or int(text) > UINT32_MAX:
        raise PeerError(f"{name} is {text[:SHOWN]!r}, not a number of 32 bits")
    return int(text)
