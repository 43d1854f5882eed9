# SPDX-License-Identifier: MIT
"""A plugin for the pytest in stand_in_dom0: let `--xen-here` take this host for a dom0."""

from pathlib import Path

from xenpy.testing import plugin

plugin.EVENT_CHANNELS = Path("/dev/null")
