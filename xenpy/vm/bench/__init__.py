# SPDX-License-Identifier: MIT
"""`xenvm bench`: what is ours beside the kernel's, QEMU's and Xen's own, in instructions.

`run` is the verb.  `table` says what is measured of block devices and what is asked of it, `fio`
turns what a run says into figures, and `dom0`, `disks` and `costs` run inside the machine;
`streams_table` and `streams` are the same for vchans and consoles; `report` makes the table.
"""
