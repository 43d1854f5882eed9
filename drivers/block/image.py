# SPDX-License-Identifier: MIT
"""From the toolstack's words to an open store: what is served, how, and through which filters.

`params`, `mode` and `filter` come from the backend's own directory, which the toolstack
wrote.  The frontend's directory is never asked: a guest that could name the image could
read any file of this domain (XSA-175, XSA-178).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from xenpy.backend import DeviceError
from xenpy.drivers.block.filters.base import FilterMaker, FilterPlace
from xenpy.drivers.block.filters.chain import parse_filters, wrap
from xenpy.drivers.block.front_place import check_place
from xenpy.drivers.block.image_lock import open_image_file
from xenpy.drivers.block.operator_code import NOT_ALLOWED
from xenpy.drivers.block.sector_unit import SectorUnit, parse_sector_unit
from xenpy.drivers.block.settings import Settings
from xenpy.drivers.block.store import SECTOR, Store
from xenpy.drivers.block.stores.file import FileStore
from xenpy.drivers.block.stores.front import FrontStore
from xenpy.drivers.block.stores.memory import MemoryStore
from xenpy.drivers.block.stores.nbd import open_nbd_store
from xenpy.drivers.block.stores.nbd_address import NbdAddress
from xenpy.drivers.block.stores.null import NullStore
from xenpy.drivers.block.stores.python import open_python_store
from xenpy.words import parse_size

__all__ = ["SCHEMES", "ImageKeys", "open_image", "parse_target"]

NBD_SCHEMES: Final = ("nbd", "nbds", "nbd+unix", "nbds+unix")
SCHEMES: Final = ("memory", "null", "python", "xen", *NBD_SCHEMES)
"""What a target may begin with; anything else is a path."""


@dataclass(frozen=True, slots=True)
class ImageKeys:
    """What the toolstack asked for.

    Attributes:
        target: an absolute path, or one of `SCHEMES` and what it takes.
        readonly: `mode` is r.
        cdrom: `device-type` is cdrom.
        discard: `discard-enable` is not 0: the guest may give blocks back.
        filters: of this disk; None: the daemon's.
        sector_unit: likewise.
    """

    target: str
    readonly: bool
    cdrom: bool
    discard: bool = True
    filters: tuple[FilterMaker, ...] | None = None
    sector_unit: SectorUnit | None = None

    @classmethod
    def parse(cls, keys: Mapping[str, str]) -> ImageKeys:
        """Check the backend's own directory.

        Raises:
            DeviceError: a key is missing or asks for something that is not served here.
        """
        mode = keys.get("mode", "")
        if mode not in ("r", "w"):
            raise DeviceError(f"mode is {mode!r}; r and w are served")
        words = keys.get("filter")
        try:
            target = parse_target(keys.get("params", ""))
            filters = None if words is None else parse_filters(words)
            sector_unit = parse_sector_unit(keys.get("sector-unit", ""))
        except ValueError as error:
            raise DeviceError(str(error)) from error
        return cls(
            target,
            readonly=mode == "r",
            cdrom=keys.get("device-type") == "cdrom",
            discard=keys.get("discard-enable") != "0",
            filters=filters,
            sector_unit=sector_unit,
        )


def parse_target(params: str) -> str:
    """The target in `params`, where libxl writes `aio:` before whatever `xl` was given.

    Raises:
        ValueError: it is none.
    """
    if not params:
        raise ValueError("params is empty: no image is named")
    target = params.removeprefix("aio:")
    if "\0" in target:
        raise ValueError("params holds a NUL byte")
    if target.startswith("/"):
        return target
    scheme, colon, rest = target.partition(":")
    if not colon or scheme == "aio" or not scheme.replace("+", "").isalnum():
        raise ValueError(f"{target!r} is not an absolute path: the daemon has no directory")
    if scheme not in SCHEMES:
        hint = "convert the image to raw, or serve it through qemu-nbd"
        raise ValueError(f"format {scheme!r} is not served: {hint}")
    if scheme in ("memory", "null"):
        if parse_size(rest) < SECTOR:
            raise ValueError(f"{target!r}: a disk has at least one sector")
    elif scheme == "xen":
        check_place(rest)
    elif scheme in NBD_SCHEMES:
        NbdAddress.parse(target)
    return target


def open_image(keys: ImageKeys, settings: Settings, place: FilterPlace) -> Store:
    """Open a store, with its filters.  Blocks.

    Raises:
        DeviceError: it cannot be opened, or somebody else uses it.
    """
    filters = settings.filters if keys.filters is None else keys.filters
    readonly = keys.readonly or any(each.lower_readonly for each in filters)
    try:
        store = _open(keys.target, settings, place.store_path, readonly=readonly)
        return wrap(store, filters, place)
    except OSError as error:
        raise DeviceError(f"cannot open {keys.target}: {_reason(error, keys.target)}") from error
    except ValueError as error:
        # A NUL in a path, a host's name that is none.
        raise DeviceError(f"cannot open {keys.target}: {error}") from error


def _open(target: str, settings: Settings, store_path: str | None, *, readonly: bool) -> Store:
    if target.startswith("/"):
        return _open_file(target, settings, readonly=readonly)
    scheme, _, rest = target.partition(":")
    if scheme == "memory":
        return MemoryStore(parse_size(rest), readonly=readonly)
    if scheme == "null":
        return NullStore(parse_size(rest), readonly=readonly)
    if scheme == "python":
        if not settings.python:
            raise DeviceError(f"a python: target {NOT_ALLOWED}")
        return open_python_store(rest, readonly=readonly)
    if scheme == "xen":
        return FrontStore(rest, readonly=readonly, store_path=store_path)
    return open_nbd_store(NbdAddress.parse(target), readonly=readonly)


def _open_file(path: str, settings: Settings, *, readonly: bool) -> FileStore:
    fd = open_image_file(path, readonly=readonly, force=settings.force)
    try:
        store = FileStore(fd, readonly=readonly, direct=settings.direct)
    except BaseException:
        os.close(fd)
        raise
    if store.size < store.sector_size:
        store.close()
        raise DeviceError(f"{path} is empty: a disk has at least one sector")
    return store


def _reason(error: OSError, target: str) -> str:
    """What went wrong, and with which file if that is another than the target."""
    text = error.strerror or str(error)
    other = error.filename not in (None, target)
    return f"{error.filename}: {text}" if other else text
