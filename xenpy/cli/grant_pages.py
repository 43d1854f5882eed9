# SPDX-License-Identifier: MIT
"""What the verbs of `xenpy grant` share: references, and what is put into pages and shown."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from xenpy.cli.common import add_common_options, seconds
from xenpy.cli.errors import UsageError
from xenpy.types import GrantRef

__all__ = ["add_from", "add_hold", "add_to", "dump", "gref", "show", "source"]

ROW: Final = 16
STANDARD: Final = Path("-")


def gref(text: str) -> GrantRef:
    """An argument that is a grant reference."""
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no grant reference; give 8, or 0x8")
    return GrantRef(number)


def add_from(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--from", dest="source", metavar="FILE", type=Path, help=what)


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", dest="target", metavar="FILE", type=Path,
        help="write what is there into a file; -: standard output",
    )  # fmt: skip


def add_hold(parser: argparse.ArgumentParser) -> None:
    """What verbs take that hold pages, and the options of all."""
    parser.add_argument("--seconds", metavar="S", type=seconds, help="hold no longer than that")
    add_to(parser)
    parser.add_argument("--json", action="store_true", help="print what is held as JSON")
    add_common_options(parser)


def source(args: argparse.Namespace, room: int) -> bytes:
    """What `--from` has; nothing without it.

    Raises:
        UsageError: it is more than there is room for.
        OSError: it cannot be read.
    """
    if args.source is None:
        return b""
    if args.source == STANDARD:
        content = sys.stdin.buffer.read(room + 1)
    else:
        with args.source.open("rb") as file:
            content = file.read(room + 1)
    if len(content) > room:
        raise UsageError(f"{args.source} has more than the {room} bytes that there is room for")
    return content


def show(args: argparse.Namespace, content: bytes) -> None:
    """Where `--to` says, or in hexadecimal."""
    if args.target == STANDARD:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    elif args.target is not None:
        args.target.write_bytes(content)
    else:
        print(dump(content), end="", flush=True)


def dump(content: bytes) -> str:
    """Rows of 16 bytes, as of hexdump -C: of rows that are the same, `*` stands for all but one."""
    lines: list[str] = []
    before = None
    for at in range(0, len(content), ROW):
        row = content[at : at + ROW]
        if row != before:
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            lines.append(f"{at:08x}  {row.hex(' '):47}  |{text}|")
        elif lines[-1] != "*":
            lines.append("*")
        before = row
    return "".join(f"{line}\n" for line in [*lines, f"{len(content):08x}"])
