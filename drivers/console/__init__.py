# SPDX-License-Identifier: MIT
"""PV consoles: the byte streams that a guest's hvc terminals are made of."""
