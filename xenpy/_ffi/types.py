# SPDX-License-Identifier: MIT
"""What C values look like to the type checker: the one place where `Any` is allowed."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

__all__ = ["CData", "Ffi"]

CData: TypeAlias = Any
"""A pointer, an array or a structure of C.  Indexing and fields are checked by CFFI when used."""


class Ffi(Protocol):
    """The `ffi` of a compiled module, as far as it is used."""

    NULL: CData
    errno: int

    def new(self, cdecl: str, init: object = None) -> CData: ...
    def cast(self, cdecl: str, source: object) -> CData: ...
    def buffer(self, cdata: CData, size: int = -1) -> Any: ...
    def from_buffer(self, cdecl: str, python_buffer: object, require_writable: bool = ...) -> CData:
        """A pointer into a Python buffer, which is kept alive by it."""

    def release(self, cdata: CData) -> None:
        """Give the buffer of `from_buffer` back at once."""

    def memmove(self, dest: object, src: object, n: int) -> None: ...
    def callback(self, cdecl: str, python_callable: object, error: object = None) -> CData:
        """A C function that calls a Python one; it lives as long as what is returned."""

    def string(self, cdata: CData, maxlen: int = -1) -> bytes: ...
