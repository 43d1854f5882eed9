# SPDX-License-Identifier: MIT
"""Records as C lays them out, for the ABIs that share memory with each other on one host.

Sans-IO.  A 32-bit x86 guest and a 64-bit one disagree in one thing: i386 aligns a 64-bit
field to 4 bytes, everybody else (x86_64, both ARMs) to 8.  So a record is named fields in
the order of the header, and the ABI says where the padding goes.  All are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Annotated, Final, TypeAlias, get_args, get_type_hints

__all__ = ["CAbi", "Record", "fields_of", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"]

ReadableBuffer: TypeAlias = bytes | bytearray | memoryview

_SIZES: Final = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8}
"""Codes of the struct module, with the size and natural alignment of each."""

i8: TypeAlias = Annotated[int, "b"]
u8: TypeAlias = Annotated[int, "B"]
i16: TypeAlias = Annotated[int, "h"]
u16: TypeAlias = Annotated[int, "H"]
i32: TypeAlias = Annotated[int, "i"]
u32: TypeAlias = Annotated[int, "I"]
i64: TypeAlias = Annotated[int, "q"]
u64: TypeAlias = Annotated[int, "Q"]
"""Integers as C has them, for the fields of a NamedTuple; to a type checker they are int."""


def fields_of(record: type[tuple[int, ...]]) -> dict[str, str]:
    """The fields of a NamedTuple, for `Record`: name and code.

    Raises:
        TypeError: it is no NamedTuple, or a field has no width.
    """
    names: tuple[str, ...] = getattr(record, "_fields", ())
    if not names:
        raise TypeError(f"{record.__name__} is no NamedTuple with fields")
    hints = get_type_hints(record, include_extras=True)
    fields: dict[str, str] = {}
    for name in names:
        kind, *codes = get_args(hints[name]) or (hints[name],)
        if kind is not int or len(codes) != 1 or codes[0] not in _SIZES:
            raise TypeError(f"{record.__name__}.{name} has no width; give u8, i8, u16 ... i64")
        fields[name] = codes[0]
    return fields


class CAbi(Enum):
    """How a C compiler aligns; the value is the largest alignment of any field.

    The names follow io/protocols.h: "x86_32-abi", "x86_64-abi"; ARM's is laid out as x86_64's.
    """

    X86_32 = 4
    X86_64 = 8

    @property
    def protocol(self) -> str:
        """The value of the key `protocol` (io/protocols.h)."""
        return f"x86_{8 * self.value}-abi"

    @classmethod
    def of_protocol(cls, name: str) -> CAbi:
        """Raises ValueError: no such `protocol`."""
        if name == "arm-abi":
            return cls.X86_64
        for abi in cls:
            if abi.protocol == name:
                return abi
        raise ValueError(f"protocol is {name[:40]!r}")

    @classmethod
    def native(cls) -> CAbi:
        """That of this process."""
        return cls(struct.calcsize("@BQ") - struct.calcsize("Q"))


class Record:
    """One C structure of scalar fields, for one ABI.

    Args:
        abi: whose layout.
        fields: name and code, in the order of the header: b B h H i I q Q, as the struct
            module has them.

    Attributes:
        size: sizeof.
        alignment: alignof.
        offsets: offsetof each field.
        pack: the whole record, of one value per field.  Raises struct.error if a value does
            not fit its field.
        unpack: the fields, in order, of the record in a private copy, at an offset or 0.
        iter_unpack: the fields of records that follow each other.

    Every byte that is no field is written as zero (XSA-216) and ignored when read.
    """

    def __init__(self, abi: CAbi, fields: Mapping[str, str]) -> None:
        self.offsets: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        codes = ["<"]
        offset = alignment = 0
        for name, code in fields.items():
            size = _SIZES.get(code)
            if size is None:
                raise ValueError(f"field {name!r} has code {code!r}; there are {' '.join(_SIZES)}")
            align = min(size, abi.value)
            alignment = max(alignment, align)
            padding = -offset % align
            self.offsets[name] = offset + padding
            codes.append(f"{padding}x{code}")
            offset += padding + size
            self._ends[name] = offset
        self.alignment = max(alignment, 1)
        codes.append(f"{-offset % self.alignment}x")
        self._struct = struct.Struct("".join(codes))
        self.size = self._struct.size
        # struct's own: a call in between is what a request costs most often.
        self.pack: Callable[..., bytes] = self._struct.pack
        self.unpack: Callable[..., tuple[int, ...]] = self._struct.unpack_from
        self.iter_unpack: Callable[[ReadableBuffer], Iterator[tuple[int, ...]]] = (
            self._struct.iter_unpack
        )

    def known(self, start: bytes) -> dict[str, int]:
        """The fields that are whole in the first bytes of a record, by name."""
        values = self.unpack(start.ljust(self.size, b"\0"))
        return {
            name: value
            for (name, end), value in zip(self._ends.items(), values, strict=True)
            if end <= len(start)
        }

    def pack_into(self, buffer: bytearray | memoryview, offset: int, *values: int) -> None:
        """Write the whole record at `offset` of a private buffer."""
        self._struct.pack_into(buffer, offset, *values)
