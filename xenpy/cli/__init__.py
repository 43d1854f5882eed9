# SPDX-License-Identifier: MIT
"""The `xenpy` command: one module for each verb."""
