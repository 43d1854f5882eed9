# SPDX-License-Identifier: MIT
"""Loads a program that the documentation shows."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping
from typing import Any

from fences import ROOT

__all__ = ["load"]


def load(path: str) -> Mapping[str, Any]:
    """The names of a program below the checkout; it may import its neighbours."""
    script = ROOT / path
    sys.path.insert(0, str(script.parent))
    try:
        return runpy.run_path(str(script), run_name="example")
    finally:
        sys.path.remove(str(script.parent))
