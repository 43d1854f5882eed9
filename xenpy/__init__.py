# SPDX-License-Identifier: MIT
"""Real Xen paravirtual drivers in Python.

Importing this package touches no Xen library: `xenpy.vm` and the sans-IO modules
work on a machine without Xen.  Import what you need from its module, low to high:
`xenpy.gnttab`, `xenpy.evtchn`, `xenpy.ring`, `xenpy.xenstore`, `xenpy.backend`.
"""

__version__ = "0.1.0"
