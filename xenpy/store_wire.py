# SPDX-License-Identifier: MIT
"""XenStore's wire, sans-IO: bytes in, packets out, however they were cut.

Implements xen/include/public/io/xs_wire.h on pyxs's `Packet`.  A header's length is
checked before a byte of its payload is kept.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Final

from xenpy.errors import PeerError, XenError, xen_error
from xenpy.store_pyxs import Op, Packet, make_packet

__all__ = [
    "DIRECTORY_MAX",
    "HEADER_SIZE",
    "PAYLOAD_MAX",
    "PacketReader",
    "encode_packet",
    "join_strings",
    "parse_directory_part",
    "parse_error",
    "parse_event",
    "split_strings",
]

PAYLOAD_MAX: Final = 4096
"""XENSTORE_PAYLOAD_MAX: no payload is longer, but for one."""
DIRECTORY_MAX: Final = 1 << 20
"""oxenstored answers DIRECTORY on a socket in one packet however long it is.  A directory
longer than this, some 10^5 entries, is refused whichever way it comes."""

_HEADER: Final = struct.Struct("=IIII")  # struct xsd_sockmsg: type, req_id, tx_id, len
HEADER_SIZE: Final = _HEADER.size

_HINTS: Final = {
    errno.EACCES: "the node's permissions forbid it",
    errno.EPERM: "the node's permissions forbid it",
    errno.ENOSPC: "a quota of xenstored is used up",
    errno.EDQUOT: "a quota of xenstored is used up",
    errno.E2BIG: "more than xenstored allows or one packet holds",
}


def encode_packet(op: Op, rq_id: int, tx_id: int, payload: bytes) -> bytes:
    """One whole message: header and payload together, as the kernel's device wants it.

    Raises:
        XenError: E2BIG, the payload is longer than `PAYLOAD_MAX`.
    """
    if len(payload) > PAYLOAD_MAX:
        hint = f"path and value together hold at most {PAYLOAD_MAX} bytes"
        raise xen_error(errno.E2BIG, op.name.lower(), hint, size=len(payload))
    return _HEADER.pack(op, rq_id, tx_id, len(payload)) + payload


class PacketReader:
    """Takes bytes as they come and gives whole packets.

    Holds at most one unfinished packet between two calls.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Add bytes; iterate over the packets that are complete now.

        Raises:
            PeerError: a header announces more than the protocol allows.  The stream has no
                further boundary to find, so the connection is of no more use.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEADER_SIZE:
                op, rq_id, tx_id, size = _HEADER.unpack_from(buffer, start)
                if size > (DIRECTORY_MAX if op == Op.DIRECTORY else PAYLOAD_MAX):
                    raise PeerError(f"xenstored announces {size} bytes in operation {op}")
                end = start + HEADER_SIZE + size
                if len(buffer) < end:
                    break
                payload = bytes(buffer[start + HEADER_SIZE : end])
                start = end
                yield make_packet(op, rq_id, tx_id, payload)
        finally:
            del buffer[:start]


def join_strings(*strings: bytes) -> bytes:
    """NUL-terminated strings, one after the other."""
    return b"".join(b"%s\0" % string for string in strings)


def split_strings(payload: bytes) -> list[str]:
    """The strings of a payload.  Any byte survives: UTF-8 with surrogateescape."""
    text = payload.decode("utf-8", "surrogateescape")
    return text.removesuffix("\0").split("\0") if text else []


def parse_event(payload: bytes) -> tuple[str, str]:
    """Path and token of a WATCH_EVENT.

    Raises:
        PeerError: it has none.
    """
    strings = split_strings(payload)
    if len(strings) < 2:
        raise PeerError(f"xenstored sends an event without a token: {payload[:80]!r}")
    return strings[0], strings[1]


def parse_directory_part(payload: bytes) -> tuple[str, bytes, bool]:
    """Generation, this part of the list of children, and whether it is the last part.

    Raises:
        PeerError: there is no generation.
    """
    generation, found, part = payload.partition(b"\0")
    if not found or not generation:
        raise PeerError(f"xenstored sends a part of a directory without a generation: {payload!r}")
    # The last part ends with an empty name.
    last = part == b"\0" or part.endswith(b"\0\0")
    return generation.decode("utf-8", "surrogateescape"), part[:-1] if last else part, last


def parse_error(payload: bytes, operation: str, **arguments: object) -> XenError:
    """The error that an ERROR packet names.  Returns it; the caller raises."""
    name = payload[:32].partition(b"\0")[0].decode("ascii", "replace")
    # oxenstored says EQUOTA, which no errno.h has, where C xenstored says ENOSPC.
    number: object = getattr(errno, "ENOSPC" if name == "EQUOTA" else name, None)
    if not isinstance(number, int):
        return xen_error(errno.EIO, operation, f"xenstored says {name!r}", **arguments)
    return xen_error(number, operation, _HINTS.get(number, ""), **arguments)
