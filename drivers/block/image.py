# SPDX-License-Identifier: MIT
"""From the toolstack's words to an open image: which file, which mode, nobody else's.

`params` and `mode` come from the backend's own directory, which the toolstack wrote.  The
frontend's directory is never asked: a guest that could name the image could read any file
of this domain (XSA-175, XSA-178).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from xenpy.backend import DeviceError
from xenpy.drivers.block.image_lock import open_image_file
from xenpy.drivers.block.protocol import SECTOR_SIZE
from xenpy.drivers.block.store import FileStore

__all__ = ["ImageKeys", "open_image"]


@dataclass(frozen=True, slots=True)
class ImageKeys:
    """What the toolstack asked for.

    Attributes:
        path: of the image; absolute.
        readonly: `mode` is r.
        cdrom: `device-type` is cdrom.
    """

    path: str
    readonly: bool
    cdrom: bool

    @classmethod
    def parse(cls, keys: Mapping[str, str]) -> ImageKeys:
        """Check the backend's own directory.

        Raises:
            DeviceError: a key is missing or asks for something that is not served here.
        """
        mode = keys.get("mode", "")
        if mode not in ("r", "w"):
            raise DeviceError(f"mode is {mode!r}; r and w are served")
        path = _path(keys.get("params", ""))
        return cls(path, mode == "r", keys.get("device-type") == "cdrom")


def _path(params: str) -> str:
    """The image in `params`: a path, or `aio:` and a path, as libxl writes for tap and qdisk."""
    if not params:
        raise DeviceError("params is empty: no image is named")
    path = params.removeprefix("aio:")
    if path.startswith("/"):
        if "\0" in path:
            raise DeviceError("params holds a NUL byte")
        return path
    scheme, colon, _ = params.partition(":")
    if colon and scheme != "aio" and scheme.isalnum():
        raise DeviceError(f"format {scheme!r} is not served: convert the image to raw")
    raise DeviceError(f"{path!r} is not an absolute path: the daemon has no directory of its own")


def open_image(keys: ImageKeys, *, force: bool) -> FileStore:
    """Open and lock an image.  Blocks.

    Args:
        force: do not care who else has it open.

    Raises:
        DeviceError: it cannot be opened, or somebody else uses it.
    """
    try:
        fd = open_image_file(keys.path, readonly=keys.readonly, force=force)
    except OSError as error:
        raise DeviceError(f"cannot open {keys.path}: {error.strerror}") from error
    try:
        store = FileStore(fd, readonly=keys.readonly)
    except OSError as error:
        os.close(fd)
        raise DeviceError(f"cannot serve {keys.path}: {error.strerror}") from error
    if store.size < SECTOR_SIZE:
        store.close()
        raise DeviceError(f"{keys.path} is empty: a disk has at least one sector")
    return store
