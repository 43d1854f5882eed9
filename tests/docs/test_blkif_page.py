# SPDX-License-Identifier: MIT
"""docs/reference/blkif.md claims nothing that no test has seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs/reference/blkif.md"
CELL = re.compile(r"(?<!\\)\|")
STOCK = ("Linux's blkfront", "Linux's blkback", "QEMU's qdisk")


def rows(text: str) -> list[list[str]]:
    """The cells of the tables below a heading, without the tables' heads."""
    found = [
        [cell.strip() for cell in CELL.split(line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in found[1:] if not set(row[0]) <= {"-"}]


FEATURES, _, SEEN = PAGE.read_text().partition("## Seen by")
CLAIMS = {
    (row[0], side): row[5 + n] for row in rows(FEATURES) for n, side in enumerate(("back", "front"))
}
EVIDENCE = [row for row in rows(SEEN) if len(row) == 4]


@pytest.mark.parametrize("claim", sorted(CLAIMS), ids=" ".join)
def test_each_mark_has_its_evidence(claim: tuple[str, str]) -> None:
    mark = CLAIMS[claim][:1]
    peers = [row[2] for row in EVIDENCE if (row[0], row[1]) == claim]
    if mark in ("○", "n"):
        assert peers == []
    elif mark == "●":
        assert any(peer.startswith(STOCK) for peer in peers), peers
    else:
        assert mark == "◐"
        assert peers
        assert not any(peer in STOCK for peer in peers), "that is a stock peer"


@pytest.mark.parametrize("row", EVIDENCE, ids=lambda row: f"{row[0]} {row[1]}")
def test_the_evidence_is_a_test(row: list[str]) -> None:
    assert (row[0], row[1]) in CLAIMS
    file, _, name = row[3].strip("`").partition("::")
    assert re.search(rf"^(?:async )?def {name}\(", (TESTS / file).read_text(), re.M), row[3]
    if row[2] in STOCK:
        assert file.startswith("xen/"), "a stock peer is seen on Xen"
