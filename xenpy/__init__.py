# SPDX-License-Identifier: MIT
"""Real Xen paravirtual drivers in Python.

Importing this package touches no Xen library: `xenpy.vm` and the sans-IO modules
work on a machine without Xen.  Import what you need from its module, low to high:
`xenpy.gnttab`, `xenpy.evtchn`, `xenpy.ring`, `xenpy.xenstore`, `xenpy.backend`.  What a
driver of your own begins with is here as well, and imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenpy.cli.run import main
    from xenpy.ring_backend import Backend
    from xenpy.ring_frontend import connect
    from xenpy.ring_protocol import RingProtocol
    from xenpy.stream_backend import StreamBackend
    from xenpy.stream_frontend import connect_stream
    from xenpy.stream_protocol import StreamProtocol

__all__ = [
    "Backend", "RingProtocol", "StreamBackend", "StreamProtocol", "connect", "connect_stream",
    "get_include", "main",
]  # fmt: skip

__version__ = "0.1.0"


def get_include() -> str:
    """The directory for a C compiler's -I, with `xenpy/ring_core.h` and `xenpy/calls.h`.

    For native engines of other packages: rings and Xen's calls as xenpy's own engines have them.
    """
    return str(Path(__file__).resolve().parent / "include")


_HOMES: Final = {
    "Backend": "xenpy.ring_backend",
    "RingProtocol": "xenpy.ring_protocol",
    "StreamBackend": "xenpy.stream_backend",
    "StreamProtocol": "xenpy.stream_protocol",
    "connect": "xenpy.ring_frontend",
    "connect_stream": "xenpy.stream_frontend",
    "main": "xenpy.cli.run",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'xenpy' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
