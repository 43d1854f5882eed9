# SPDX-License-Identifier: MIT
"""Sphinx makes HTML of this directory, `sphinx-build -W docs docs/_build/html`, and manual pages,
`sphinx-build -W -b man docs docs/_build/man`.

The reference is read from the docstrings of the package beside it, so its C part must have
been built (`python3 -m xenpy._ffi.build .`) or the package installed.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xenpy import __version__

ROOT = Path(__file__).resolve().parents[1]

project = "xenpy"
author = copyright = "the xenpy authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist"]
exclude_patterns = ["_build"]
html_theme = "alabaster"

man_pages = [
    ("man/xenpy.1", "xenpy", "Xen paravirtual drivers in Python", [], 1),
    ("man/xenpy-serve.8", "xenpy-serve", "serve devices to guests", [], 8),
    ("man/xenpy.toml.5", "xenpy.toml", "what xenpy serve --config reads", [], 5),
    ("man/xenpy-new.1", "xenpy-new", "begin a driver of your own", [], 1),
    ("man/xenpy-protocol.1", "xenpy-protocol", "print what the other half must know", [], 1),
    ("man/xenpy-run.8", "xenpy-run", "serve a protocol of your own", [], 8),
    ("man/xenpy-attach.8", "xenpy-attach", "make a device, or take it away", [], 8),
    ("man/xenpy-block.1", "xenpy-block", "use a disk without the kernel, or resize one", [], 1),
    ("man/xenpy-console.8", "xenpy-console", "consoles of guests", [], 8),
    ("man/xenpy-vchan.1", "xenpy-vchan", "standard input and output to another domain", [], 1),
    ("man/xenpy-ls.1", "xenpy-ls", "all devices, whoever serves them", [], 1),
    ("man/xenpy-top.1", "xenpy-top", "the busiest devices, and what they cost", [], 1),
    ("man/xenpy-grant.1", "xenpy-grant", "share pages, map those of others", [], 1),
    ("man/xenpy-evtchn.1", "xenpy-evtchn", "bind event channels, and notify", [], 1),
    ("man/xenpy-tap.1", "xenpy-tap", "show what a live ring carries", [], 1),
    ("man/xenpy-replay.1", "xenpy-replay", "feed a capture to a disk", [], 1),
    ("man/xenpy-proxy.8", "xenpy-proxy", "stand between a guest and its disk", [], 8),
    ("man/xenpy-doctor.1", "xenpy-doctor", "look whether this machine can do it", [], 1),
    ("man/xenpy-block.7", "xenpy-block", "disks for guests", [], 7),
]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
myst_heading_anchors = 3

FROM_ELSEWHERE = {
    "project/contributing": "CONTRIBUTING.md",
    "project/security": "SECURITY.md",
    "project/changelog": "CHANGELOG.md",
    "project/block": "drivers/block/README.md",
    "project/console": "drivers/console/README.md",
    "project/vchan": "drivers/vchan/README.md",
}
"""Pages whose text lies outside this directory, where a forge's visitor looks for it."""

LINK = re.compile(r"(?<=\]\()[^)#:\s]+")
SEVERAL_NAMES = re.compile(r"^ +\w+(?:, \w+)+(?=: )")
NO_PYTHON = re.compile(r"<(?:function \w+|factory)>")


def page(app: Sphinx, name: str, source: list[str]) -> None:
    """Fetch a page from elsewhere, and let links between here and there stay in the HTML."""
    path = FROM_ELSEWHERE.get(name, f"docs/{name}.md")
    pages = {file: f"/{page}.md" for page, file in FROM_ELSEWHERE.items()}

    def inside(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(path), link[0]))
        return pages.get(target, target.removeprefix("docs") if path in pages else link[0])

    if path.endswith(".md") and (ROOT / path).exists():
        source[0] = LINK.sub(inside, (ROOT / path).read_text())


def docstring(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """From our way of writing docstrings to what napoleon and docutils take."""
    if what == "module":
        # What is indented is an example, or a drawing.
        for number in range(len(lines) - 1, 0, -1):
            if lines[number].startswith("    ") and not lines[number - 1]:
                lines.insert(number, "")
                lines.insert(number, "::")
    elif what in ("attribute", "data", "property"):
        # "A page: 4096 bytes" would be taken for a type and a text.
        lines.insert(0, "")
    else:
        # "domid, devid: ..." would be taken for a type and a name.
        lines[:] = [SEVERAL_NAMES.sub(lambda at: at[0].replace(", ", ","), line) for line in lines]


def signature(
    app: Sphinx, what: str, name: str, thing: object, options: object,
    arguments: str | None, returned: str | None,
) -> tuple[str | None, str | None]:  # fmt: skip
    """Defaults whose repr is no Python would keep the whole signature from being read."""
    return NO_PYTHON.sub("...", arguments) if arguments else arguments, returned


def setup(app: Sphinx) -> None:
    app.connect("source-read", page)
    # Before napoleon's own, which has priority 500.
    app.connect("autodoc-process-docstring", docstring, priority=100)
    app.connect("autodoc-process-signature", signature)
    # A diagram stays text where nothing draws it.
    app.add_lexer("mermaid", TextLexer)
