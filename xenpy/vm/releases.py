# SPDX-License-Identifier: MIT
"""The Debian releases that the VM can be made of, and where they differ.

One row per release: Debian 13 has Xen 4.20, Debian 12 has Xen 4.17.  Whatever else
depends on the release is derived from the image tree, not from this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenpy.vm.errors import VmError

__all__ = ["DEFAULT", "RELEASES", "Release", "release"]


@dataclass(frozen=True)
class Release:
    """One Debian release.

    Attributes:
        name: Debian's code name.
        xen: Xen's version, as in its package names ("4.20").
        packages: what the image holds beyond the common list.
    """

    name: str
    xen: str
    packages: tuple[str, ...] = ()

    @property
    def hypervisor(self) -> str:
        """The file name of the hypervisor in /boot."""
        return f"xen-{self.xen}-amd64.gz"


RELEASES = {
    row.name: row
    for row in (
        Release("trixie", "4.20"),
        Release("bookworm", "4.17"),
    )
}

DEFAULT = "trixie"


def release(name: str) -> Release:
    """The release called `name`.  Raises VmError if there is none."""
    try:
        return RELEASES[name]
    except KeyError:
        raise VmError(
            f"unknown release {name!r}", hint=f"choose one of: {', '.join(RELEASES)}"
        ) from None
