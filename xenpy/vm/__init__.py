# SPDX-License-Identifier: MIT
"""The nested-Xen test VM: image, QEMU, warm snapshots, guests.

Standard library only, and nothing else of xenpy is imported, so that it runs on a
machine that has neither Xen nor a compiler.  `vagrant/xenvm` is its command line;
`xenpy.vm.cli` lists the verbs.
"""
