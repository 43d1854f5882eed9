# SPDX-License-Identifier: MIT
"""What a machine's dom0 has of xenpy already, so that only what differs goes there.

A warm snapshot has the checkout of the day on which it was made.  To send and to unpack it all anew
took an emulated machine more than half of the seconds that a pristine Xen takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xenpy.vm import build
from xenpy.vm.checkout import Checkout

__all__ = ["NOTHING", "Pushed"]

GONE_LIMIT = 1000
"""Names of files that are to go fit into one command."""


@dataclass(frozen=True)
class Pushed:
    """The files below /root/xenpy.

    Attributes:
        files: name -> digest of all that a tar says of it, but for its time.
    """

    files: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, checkout: Checkout, built: Path | None) -> Pushed:
        """What `Session.push` would bring there."""
        files = checkout.digests()
        if built is not None:
            files |= build.digests(built)
        return cls(files)

    @classmethod
    def load(cls, path: Path) -> Pushed:
        """As `save` has left it; nothing, if it has not."""
        try:
            return cls(json.loads(path.read_text()))
        except FileNotFoundError:
            return NOTHING

    def save(self, path: Path) -> None:
        """For whoever starts from the snapshot."""
        path.write_text(json.dumps(self.files, indent=0, sort_keys=True))

    def changed(self, wanted: Pushed) -> set[str]:
        """The files of `wanted` that are not here, or not so."""
        return {name for name, what in wanted.files.items() if self.files.get(name) != what}

    def gone(self, wanted: Pushed) -> list[str] | None:
        """The files that `wanted` has not; None if they are too many to be named.

        In a checkout xenpy/drivers is a link, and what was built for a driver has a name behind
        it: under the shorter one it is not gone.
        """
        missing = self.files.keys() - wanted.files.keys()
        names = sorted(name for name in missing if f"xenpy/{name}" not in wanted.files)
        return names if len(names) <= GONE_LIMIT else None


NOTHING = Pushed()
