# SPDX-License-Identifier: MIT
"""`pytest --xen`: tests collected here, run in the dom0 of a nested Xen, reported here."""
