# SPDX-License-Identifier: MIT
"""The manual pages are made, name every option, and show commands that parse."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fences import ROOT, fences
from xenpy.cli.main import parser
from xenpy.drivers.block.driver import WORDS
from xenpy.drivers.block.filters.chain import FILTERS
from xenpy.drivers.block.image import SCHEMES
from xenpy.drivers.block.settings import OPTIONS
from xenpy.drivers.console.driver import WORDS as CONSOLE_WORDS
from xenpy.drivers.console.settings import OPTIONS as CONSOLE_OPTIONS

MAN = ROOT / "docs/man"
PAGES = {
    ("serve",): "xenpy-serve.8",
    ("run",): "xenpy-run.8",
    ("new",): "xenpy-new.1",
    ("protocol",): "xenpy-protocol.1",
    ("attach",): "xenpy-attach.8",
    ("detach",): "xenpy-attach.8",
    ("reconfigure",): "xenpy-attach.8",
    ("block", "info"): "xenpy-block.1",
    ("block", "read"): "xenpy-block.1",
    ("block", "write"): "xenpy-block.1",
    ("block", "bench"): "xenpy-block.1",
    ("block", "resize"): "xenpy-block.1",
    ("console", "take"): "xenpy-console.8",
    ("console", "give-back"): "xenpy-console.8",
    ("console", "every"): "xenpy-console.8",
    ("vchan", "listen"): "xenpy-vchan.1",
    ("vchan", "connect"): "xenpy-vchan.1",
    ("ls",): "xenpy-ls.1",
    ("top",): "xenpy-top.1",
    ("doctor",): "xenpy-doctor.1",
    ("grant", "share"): "xenpy-grant.1",
    ("grant", "map"): "xenpy-grant.1",
    ("grant", "copy"): "xenpy-grant.1",
    ("grant", "ls"): "xenpy-grant.1",
    ("evtchn", "bind"): "xenpy-evtchn.1",
    ("evtchn", "notify"): "xenpy-evtchn.1",
    ("evtchn", "ls"): "xenpy-evtchn.1",
    ("tap",): "xenpy-tap.1",
    ("replay",): "xenpy-replay.1",
    ("proxy",): "xenpy-proxy.8",
}


def commands(top: argparse.ArgumentParser) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Each command's words and its long options."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                for words, options in commands(below):
                    yield (name, *words), options
            return
    yield (), {word for action in top._actions for word in action.option_strings if "--" in word}


@pytest.mark.parametrize(("words", "options"), list(commands(parser())), ids=str)
def test_each_option_is_on_the_page(words: tuple[str, ...], options: set[str]) -> None:
    text = (MAN / f"{PAGES[words]}.md").read_text()
    said = set(re.findall(r"^`.*`$", text, re.M))
    listed = {option for line in said for option in re.findall(r"--[\w-]+", line)}
    assert options - {"--help"} <= listed


def test_the_first_page_names_every_verb_and_its_page() -> None:
    text = (MAN / "xenpy.1.md").read_text()
    rows = dict(re.findall(r"^\| (`.*`) \| .*?: ([\w-]+\(\d\)) \|$", text, re.M))
    listed = {verb: page for verbs, page in rows.items() for verb in re.findall(r"[\w-]+", verbs)}
    assert listed == {words[0]: f"{page[:-2]}({page[-1]})" for words, page in PAGES.items()}
    also = text.partition("## See also")[2]
    assert not [page for page in listed.values() if page not in also]


def test_the_driver_s_page_has_every_word() -> None:
    text = (MAN / "xenpy-block.7.md").read_text()
    heads = " ".join(re.findall(r"^`.*`$", text, re.M))
    for name in (*OPTIONS, *WORDS):
        assert f"`{name}=" in heads, name
    for name in FILTERS:
        assert re.search(rf"`{name}[`\[,]", heads), name
    for scheme in SCHEMES:
        assert re.search(rf"`{re.escape(scheme)}:", heads), scheme


def test_the_console_s_page_has_every_word() -> None:
    heads = " ".join(re.findall(r"^`.*`$", (MAN / "xenpy-console.8.md").read_text(), re.M))
    for name in (*CONSOLE_OPTIONS, *CONSOLE_WORDS):
        assert f"`{name}=" in heads, name


def examples() -> Iterator[tuple[str, str]]:
    for page in sorted(MAN.glob("*.md")):
        for fence in fences(page.relative_to(ROOT)):
            for line in fence.text.splitlines():
                if line.startswith("xenpy ") and not re.search(r"[\[|]|\.\.\.", line):
                    yield page.name, line


@pytest.mark.parametrize(("page", "line"), list(examples()))
def test_the_examples_parse(page: str, line: str) -> None:
    parser().parse_args(shlex.split(line)[1:])


def test_they_are_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "man", "-d", tmp_path / "trees", "docs",
         tmp_path / "man"],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = {
        path.name
        for path in (tmp_path / "man").rglob("*")
        if path.suffix in (".1", ".5", ".7", ".8")
    }
    assert made == {path.stem for path in MAN.glob("*.*.md")}
