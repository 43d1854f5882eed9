# SPDX-License-Identifier: MIT
"""blkif, the PV disk protocol (xen/include/public/io/blkif.h)."""
