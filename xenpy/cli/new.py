# SPDX-License-Identifier: MIT
"""`xenpy new`: a driver to begin with."""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import xenpy
from xenpy.cli.common import Verbs
from xenpy.cli.errors import UsageError

__all__ = ["add_parser", "generate"]

TEMPLATE: Final = Path(xenpy.__file__).resolve().parent / "drivers/template"
"""A driver like any other; its tests are run as they are, and once it has been renamed."""
WORD: Final = "template"
"""The name that it has."""

DESCRIPTION = """\
Make a directory with a driver of your own, each line of it explained: a protocol, both halves,
tests that pass over the fakes and on Xen, and a README with the commands that serve and attach it.
It is a copy of drivers/template under another name.
"""
EPILOG = """\
examples:
  xenpy new lamp
  cd lamp && python3 -m pytest
  python3 -m pytest --xen
  xenpy run lamp.py
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "new",
        help="begin a driver of your own",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="of the protocol: a-z, 0-9 and _")
    parser.add_argument("--directory", metavar="DIR", type=Path, help="what to make (NAME, here)")
    parser.set_defaults(run=run, verbose=False, quiet=False)


def check_name(name: str, texts: Iterable[str]) -> None:
    """Raises UsageError: the name is none for a module of Python, or is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        raise UsageError(f"{name!r} is no name for a protocol: a-z, 0-9 and _, a letter first")
    if keyword.iskeyword(name) or keyword.iskeyword(_title(name)):
        raise UsageError(f"{name!r} is a word of Python's: choose another")
    if name in sys.stdlib_module_names or name in ("pytest", "xenpy", "test"):
        raise UsageError(f"{name}.py would hide a module of that name: choose another")
    used = {word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text)}
    if name != WORD and {spell(name) for spell in SPELLINGS} & used:
        raise UsageError(f"{name!r} is used for something else in the files: choose another")


def generate(name: str, directory: Path) -> list[Path]:
    """Write the files.  Returns them.

    Raises:
        UsageError: the name will not do, or there is something already.
    """
    # No more than the files: an installed package has their bytecode beside them.
    sources = [path for path in sorted(TEMPLATE.iterdir()) if path.is_file()]
    texts = [source.read_text() for source in sources]
    code = [text for source, text in zip(sources, texts, strict=True) if source.suffix == ".py"]
    check_name(name, code)
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(f"{directory} exists already: nothing is overwritten") from None
    written: list[Path] = []
    for source, text in zip(sources, texts, strict=True):
        # Whose it is then is for its owner to say.
        text = re.sub(r"^# SPDX.*\n", "", text)
        for spell in SPELLINGS:
            text = text.replace(spell(WORD), spell(name))
        written.append(directory / source.name.replace(WORD, name))
        written[-1].write_text(text)
    return written


def _title(name: str) -> str:
    """A class's name."""
    return "".join(part.capitalize() for part in name.split("_"))


SPELLINGS: Final[tuple[Callable[[str], str], ...]] = (str, _title, str.upper)
"""Of a module, a class, a constant."""


def run(args: argparse.Namespace) -> int:
    for path in generate(args.name, args.directory or Path(args.name)):
        print(path)
    return 0
