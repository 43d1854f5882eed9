# SPDX-License-Identifier: MIT
"""The stores: one module for each kind of target."""
