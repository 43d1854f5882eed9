# SPDX-License-Identifier: MIT
"""Real drivers, written with xenpy's public API only; installed as `xenpy.drivers`."""
