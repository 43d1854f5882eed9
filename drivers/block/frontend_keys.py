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
from xenpy.peer_keys import SHOWN, flag, number
from xenpy.types import GrantRef, Port

__all__ = ["MAX_QUEUES", "MAX_RING_PAGE_ORDER", "QueueKeys", "parse_queues"]

MAX_RING_PAGE_ORDER: Final = 4
"""What we offer; Linux and QEMU offer the same."""
MAX_QUEUES: Final = 8
"""What may be offered at most: all keys of so many are within what is read of a frontend's
directory (`device_nodes`)."""


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """What a frontend published for one queue.

    Attributes:
        ring_refs: the ring's pages in order; 1, 2, 4, 8 or 16.
        event_channel: the frontend's port.
        abi: the layout it speaks; the same for all its queues.
        persistent: it keeps its grants, so that we may keep them mapped; likewise.
    """

    ring_refs: tuple[GrantRef, ...]
    event_channel: Port
    abi: Abi
    persistent: bool


def parse_queues(keys: Mapping[str, str], max_queues: int) -> tuple[QueueKeys, ...]:
    """Check a snapshot of the frontend's directory.

    Args:
        keys: by path below the directory, "queue-0/ring-ref" for one.
        max_queues: what was offered.

    Returns:
        At least one; no reference and no port appears twice in all of them.

    Raises:
        PeerError: a key is missing or is not what blkif.h says.
    """
    count = number(keys, "multi-queue-num-queues", default=1)
    if not 0 < count <= max_queues:
        raise PeerError(f"multi-queue-num-queues is {count}, 1 to {max_queues} were offered")
    prefixes = _prefixes(keys, count)
    rings = [_ring_refs(keys, prefix) for prefix in prefixes]
    refs = [ref for ring in rings for ref in ring]
    if len(set(refs)) != len(refs):
        raise PeerError("the same ring-ref is given twice")
    ports = [_port(keys, prefix) for prefix in prefixes]
    if len(set(ports)) != count:
        raise PeerError("the same event-channel is given twice")
    protocol = keys.get("protocol", "native")
    abi = ABIS.get(protocol)
    if abi is None:
        raise PeerError(f"protocol {protocol[:SHOWN]!r} is unknown")
    persistent = flag(keys, "feature-persistent")
    return tuple(
        QueueKeys(ring, port, abi, persistent) for ring, port in zip(rings, ports, strict=True)
    )


def _prefixes(keys: Mapping[str, str], count: int) -> list[str]:
    """Where the keys of each queue are.  One queue has them at the top, as blkif.h wants it
    and Linux does it; in `queue-0/` they are understood as well."""
    if count == 1 and ("event-channel" in keys or "queue-0/event-channel" not in keys):
        return [""]
    return [f"queue-{queue}/" for queue in range(count)]


def _port(keys: Mapping[str, str], prefix: str) -> Port:
    port = number(keys, f"{prefix}event-channel")
    if port == 0:
        raise PeerError(f"{prefix}event-channel is 0, which is never a port")
    return Port(port)


def _ring_refs(keys: Mapping[str, str], prefix: str) -> tuple[GrantRef, ...]:
    """`ring-refK` for each of 2^`ring-page-order` pages, or, for one page, `ring-ref`."""
    order = number(keys, "ring-page-order", default=0)
    if order > MAX_RING_PAGE_ORDER:
        raise PeerError(f"ring-page-order is {order}, {MAX_RING_PAGE_ORDER} was offered")
    if order == 0 and f"{prefix}ring-ref0" not in keys:
        return (GrantRef(number(keys, f"{prefix}ring-ref")),)
    names = [f"{prefix}ring-ref{page}" for page in range(1 << order)]
    return tuple(GrantRef(number(keys, name)) for name in names)
