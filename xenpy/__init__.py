# SPDX-License-Identifier: MIT
"""Real Xen paravirtual drivers in Python.

Importing this package touches no Xen library: `xenpy.vm` and the sans-IO modules
work on a machine without Xen.  Import what you need from its module, low to high:
`xenpy.gnttab`, `xenpy.evtchn`, `xenpy.ring`, `xenpy.xenstore`, `xenpy.backend`.
"""

from pathlib import Path

__all__ = ["get_include"]

__version__ = "0.1.0"


def get_include() -> str:
    """The directory for a C compiler's -I, with `xenpy/ring_core.h` and `xenpy/calls.h`.

    For native engines of other packages: rings and Xen's calls as xenpy's own engines have them.
    """
    return str(Path(__file__).resolve().parent / "include")
