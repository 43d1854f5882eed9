# SPDX-License-Identifier: MIT
from collections.abc import Callable
from typing import TypeVar

from xenpy._ffi.types import CData

_F = TypeVar("_F", bound=Callable[..., object])

class _Lib:
    BLOCK_VERSION: int
    BLOCK_POOL_BYTES: int

    def block_state_size(self) -> int: ...
    def block_disk_size(self) -> int: ...
    def block_callbacks_size(self) -> int: ...
    def block_disk_start(self, disk: int) -> None: ...
    def block_disk_has_lost(self, disk: int) -> int: ...
    def block_disk_add(
        self, disk: int, rd_req: int, rd_sect: int, wr_req: int, wr_sect: int, errors: int
    ) -> None: ...
    def block_engine_position(self, ring: int) -> int: ...
    def block_engine_start(
        self,
        config: int,
        state: int,
        calls: int,
        ring: int,
        disk: int,
        trace: int,
        callbacks: int,
        store: CData,
    ) -> int: ...

class _FFI:
    NULL: CData

    def new_handle(self, of: object) -> CData: ...
    def from_handle(self, handle: CData) -> object: ...
    def def_extern(self, name: str, error: int = ...) -> Callable[[_F], _F]: ...

lib: _Lib
ffi: _FFI
