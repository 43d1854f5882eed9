# SPDX-License-Identifier: MIT
"""`xenvm bench block`: the block backend beside the kernel's and QEMU's, in instructions.

`table` says what is measured and what is asked of it, `fio` and `report` turn what a run
says into the table, `block` is the verb; `dom0`, `disks` and `costs` run inside the machine.
"""
