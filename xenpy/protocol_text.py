# SPDX-License-Identifier: MIT
"""A protocol's page as Markdown whose tables line up, so that it is plain text as well; and as a
header of C.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from xenpy.protocol_page import Handshake, Key, ProtocolPage, RecordPage, camel
from xenpy.ring import HEADER_SIZE, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from xenpy.types import XenbusState

__all__ = ["c_header", "markdown"]

INDICES: Final = {
    "req_prod": REQ_PROD, "req_event": REQ_EVENT, "rsp_prod": RSP_PROD, "rsp_event": RSP_EVENT,
}  # fmt: skip
"""Where they lie in the ring's page (io/ring.h, struct __name##_sring)."""
WORDS_OF_C: Final = {
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum",
    "extern", "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict",
    "return", "short", "signed", "sizeof", "static", "struct", "switch", "typedef", "union",
    "unsigned", "void", "volatile", "while",
}  # fmt: skip
"""Names that a field may have in Python and not in C (C99, 6.4.1)."""


def markdown(page: ProtocolPage) -> str:
    """The page, to be read as it is or made HTML of."""
    parts = [
        f"# {page.name}",
        _ring(page),
        "## Request",
        _record(page.request),
        "## Response",
        _record(page.response),
        f"```c\n{c_header(page)}```",
        "## Keys of the frontend",
        f"Below `{page.frontend_path}`, the frontend's own, which the backend reads:",
        _keys(page.frontend_keys),
        "## Keys of the backend",
        f"Below `{page.backend_path}`, the backend's own,\nwhich the frontend reads:",
        _keys(page.backend_keys),
        "## Handshake",
        "A new device, one change at a time:",
        _walk(page.connecting),
        "A toolstack takes it away (`online` = 0, and 5 in the backend's `state`):",
        _walk(page.closing),
        "## What the backend does while `online` is 1",
        _handshake(page.backend, "frontend"),
        "## What the frontend does",
        _handshake(page.frontend, "backend"),
    ]
    return "\n\n".join(parts) + "\n"


def c_header(page: ProtocolPage) -> str:
    """The records in C, for `DEFINE_RING_TYPES` of io/ring.h.

    It is the compiler's own ABI.  A 64-bit domain that talks to 32-bit ones wraps it in
    `#pragma pack(push, 4)`, which is what i386 does with 64-bit fields.
    """
    tag = re.sub(r"\W", "_", page.name)
    records = (("request", page.request), ("response", page.response))
    lines: list[str] = []
    for kind, record in records:
        lines.append(f"struct {tag}_{kind} {{")
        lines += [f"    {_c_type(width)} {c_name(name)};" for name, width in record.fields.items()]
        lines.append("};")
    types = ", ".join(f"struct {tag}_{kind}" for kind, _ in records)
    return "\n".join([*lines, f"DEFINE_RING_TYPES({tag}, {types});"]) + "\n"


def c_name(field: str) -> str:
    """What a field is called in the header."""
    return f"{field}_" if field in WORDS_OF_C else field


def _c_type(width: str) -> str:
    return f"{'u' if width[0] == 'u' else ''}int{width[1:]}_t"


def _ring(page: ProtocolPage) -> str:
    indices = ", ".join(f"{name} at {place}" for name, place in INDICES.items())
    rows = [[abi, str(size), str(page.entries[abi])] for abi, size in page.slot_sizes.items()]
    text = (
        "One ring in one page of the frontend's, as io/ring.h has it: the indices\n"
        f"{indices},\n"
        f"the slots from {HEADER_SIZE}.  A slot holds a request, then a response.  Numbers are "
        "little-endian;\n"
        "what is no field is written as 0, and not looked at.  The frontend's key `protocol` says\n"
        f"which layout it is; without it, that is the backend's own, here {page.native}."
    )
    return f"{text}\n\n{_table(['', 'bytes of a slot', 'slots'], rows)}"


def _record(record: RecordPage) -> str:
    abis = list(record.layouts)
    rows = [
        [name, width, *(str(record.layouts[abi].offsets[name]) for abi in abis)]
        for name, width in record.fields.items()
    ]
    if any(record.layouts[abi].padding for abi in abis):
        rows.append(["padding", "", *(_holes(record.layouts[abi].padding) for abi in abis)])
    rows.append(["sizeof", "", *(str(record.layouts[abi].size) for abi in abis)])
    return _table([record.name, "", *abis], rows)


def _holes(padding: Iterable[tuple[int, int]]) -> str:
    return ", ".join(
        str(start) if length == 1 else f"{start}-{start + length - 1}" for start, length in padding
    )


def _keys(keys: Iterable[Key]) -> str:
    return _table(["key", "written by", "value"], [[key.name, key.by, key.value] for key in keys])


def _walk(seen: Iterable[tuple[str, str, str]]) -> str:
    return _table(["backend", "frontend", ""], [list(row) for row in seen])


def _handshake(side: Handshake, other: str) -> str:
    columns = [camel(state) for state in XenbusState]
    columns = [name for name in columns if any(name in row for row in side.table.values())]
    rows = [[ours, *(row.get(name, "") for name in columns)] for ours, row in side.table.items()]
    return "\n\n".join(
        [
            f"Left its own state, above the {other}'s, `Unknown` if its node is gone.  Where "
            "nothing stands,\nit waits.",
            _table(["", *columns], rows),
            _meanings(side.steps),
        ]
    )


def _meanings(steps: Mapping[str, str]) -> str:
    return "\n".join(f"- `{name}`: {text}" for name, text in steps.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells of one width in a column: it can be read without being rendered."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
