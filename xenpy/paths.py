# SPDX-License-Identifier: MIT
"""Paths and permissions of XenStore, sans-IO.

Implements docs/misc/xenstore.txt ("Paths", "Permissions") and the layout of
docs/misc/xenstore-paths.pandoc: /local/domain/DOMID, its `device` and its `backend`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from xenpy.errors import XenError
from xenpy.types import DOMID_FIRST_RESERVED, DevId, DomId

__all__ = [
    "ABS_PATH_MAX",
    "KIND",
    "REL_PATH_MAX",
    "BackendPath",
    "Permission",
    "Permissions",
    "backend_path",
    "check_path",
    "domain_path",
    "frontend_path",
    "is_special",
    "parse_backend_path",
]

ABS_PATH_MAX: Final = 3072
REL_PATH_MAX: Final = 2048
"""Bytes of an absolute and of a relative path (io/xs_wire.h)."""

KIND: Final = re.compile(r"[\w-]{1,64}", re.ASCII)
"""The name of a directory below `backend` or `device`, as far as it is used here."""
_PATH: Final = re.compile(r"[A-Za-z0-9/_@-]+")
_SPECIAL: Final = re.compile(r"@[A-Za-z]+(/[0-9]{1,5})?")
_BACKEND: Final = re.compile(
    rf"/local/domain/(\d{{1,5}})/backend/({KIND.pattern})/(\d{{1,5}})/(\d{{1,10}})", re.ASCII
)
_PERMISSION: Final = re.compile(r"([nrwb])([0-9]{1,5})")


def check_path(path: str, *, special: bool = False) -> bytes:
    """Encode a path for the wire.

    xenstored would refuse most of what is refused here; a NUL it cannot see, because
    it ends the string and what follows becomes the next argument.

    Args:
        path: absolute, or relative to the caller's own /local/domain/DOMID.
        special: also accept `@releaseDomain`, `@introduceDomain` and `@releaseDomain/DOMID`.

    Raises:
        XenError: EINVAL, the path is none.
    """
    if is_special(path):
        if special and _SPECIAL.fullmatch(path):
            return path.encode("ascii")
        raise XenError(errno.EINVAL, "check_path", "no such special path", path=path)
    if not _PATH.fullmatch(path):
        hint = "letters, digits and -/_@ only"
        raise XenError(errno.EINVAL, "check_path", hint, path=path)
    limit = ABS_PATH_MAX if path.startswith("/") else REL_PATH_MAX
    if len(path) > limit:
        raise XenError(errno.EINVAL, "check_path", f"longer than {limit} bytes", path=path)
    if "//" in path or (path != "/" and path.endswith("/")):
        raise XenError(errno.EINVAL, "check_path", "an empty name in it", path=path)
    return path.encode("ascii")


def is_special(path: str) -> bool:
    """Is this a name of an event (`@releaseDomain`) and not of a node?"""
    return path.startswith("@")


def domain_path(domid: DomId) -> str:
    """A domain's home: `/local/domain/DOMID`."""
    return f"/local/domain/{domid}"


def frontend_path(domid: DomId, kind: str, devid: DevId) -> str:
    """Where a frontend publishes: `/local/domain/DOMID/device/KIND/DEVID`."""
    return f"{domain_path(domid)}/device/{kind}/{devid}"


class BackendPath(NamedTuple):
    """The names in the path of a backend's directory."""

    backend_domid: DomId
    kind: str
    domid: DomId
    devid: DevId

    def __str__(self) -> str:
        home = domain_path(self.backend_domid)
        return f"{home}/backend/{self.kind}/{self.domid}/{self.devid}"


def backend_path(backend_domid: DomId, kind: str, domid: DomId, devid: DevId) -> str:
    """Where a backend publishes: `/local/domain/B/backend/KIND/DOMID/DEVID`."""
    return str(BackendPath(backend_domid, kind, domid, devid))


def parse_backend_path(path: str) -> BackendPath:
    """Take a backend's path apart.

    Raises:
        ValueError: it is no such path, or a number in it is not written as xl writes it.
    """
    found = _BACKEND.fullmatch(path)
    if found is None:
        raise ValueError(f"no path of a backend: {path[:80]!r}")
    backend_domid, kind, domid, devid = found.groups()
    parsed = BackendPath(DomId(int(backend_domid)), kind, DomId(int(domid)), DevId(int(devid)))
    if str(parsed) != path or max(parsed.backend_domid, parsed.domid) >= DOMID_FIRST_RESERVED:
        # "07" and "7" would be two devices with one name.
        raise ValueError(f"no path of a backend: {path[:80]!r}")
    return parsed


class Permission(NamedTuple):
    """One entry of a node's list: what a domain may do."""

    domid: DomId
    read: bool = False
    write: bool = False

    def __str__(self) -> str:
        letter = ("b" if self.write else "r") if self.read else ("w" if self.write else "n")
        return f"{letter}{self.domid}"


class Permissions(tuple[Permission, ...]):
    """A node's list, e.g. `n0,r3`.

    The first entry names the owner, who may do everything, and what it says of access
    holds for every domain that no later entry names.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Permissions:
        """Read `n0,r3` (or the wire's form, with NUL between the entries).

        Raises:
            ValueError: an entry is not one of n, r, w, b followed by a domid, or none is there.
        """
        return cls(_entry(word) for word in text.rstrip("\0").replace("\0", ",").split(","))

    @property
    def owner(self) -> DomId:
        return self[0].domid

    def encode(self) -> bytes:
        """The wire's form: every entry ends with NUL."""
        return b"".join(b"%s\0" % str(entry).encode("ascii") for entry in self)

    def __str__(self) -> str:
        return ",".join(map(str, self))

    def __new__(cls, entries: Iterable[Permission]) -> Permissions:
        permissions = super().__new__(cls, entries)
        if not permissions:
            raise ValueError("permissions name at least the owner")
        return permissions


def _entry(word: str) -> Permission:
    found = _PERMISSION.fullmatch(word)
    if found is None:
        raise ValueError(f"no permission: {word[:16]!r}")
    letter, domid = found.groups()
    return Permission(DomId(int(domid)), read=letter in "rb", write=letter in "wb")
