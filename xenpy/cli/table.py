# SPDX-License-Identifier: MIT
"""Rows of words, in columns."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["table"]


def table(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """A line for each row; at least one row.

    Args:
        right: numbers: each column ends where its longest word does.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            word.rjust(width) if right else word.ljust(width)
            for word, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
