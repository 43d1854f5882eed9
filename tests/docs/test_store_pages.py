# SPDX-License-Identifier: MIT
"""The pages on stores: each server that they start is started, each disk that they attach is
opened, below a directory of the test's own."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from conformance.nbd_server import PATIENCE, have_libnbd
from fences import ROOT, commands, fences
from xenpy.attach import parse_words
from xenpy.cli import main
from xenpy.devlog import BoundedLog
from xenpy.drivers.block.driver import DRIVER
from xenpy.drivers.block.filters.base import FilterPlace
from xenpy.drivers.block.filters.chain import FILTERS
from xenpy.drivers.block.image import SCHEMES, ImageKeys, open_image
from xenpy.drivers.block.settings import Settings

PAGES = [Path("docs/howto/choose-a-store.md"), Path("docs/howto/write-a-store.md")]


def typed(page: Path, directory: Path) -> list[list[str]]:
    """The words of each command on a page, its directories moved below ours."""
    return [
        [word.replace("/srv", str(directory)).replace("/run", str(directory)) for word in words]
        for fence in fences(page)
        if fence.language == "console"
        for command in commands(fence)
        if (words := shlex.split(command.text))
    ]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """What the pages take for granted, and the end of what they start."""
    have_libnbd()
    for name in ("web.img", "data.img"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    for name in ("ram_store.py", "striped_store.py"):
        shutil.copy(ROOT / "docs/howto" / name, tmp_path)
    yield tmp_path
    pid_file = tmp_path / "pid"
    if pid_file.exists():
        # It is no child of ours, and who reaps it may take his time: its socket goes first.
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while (tmp_path / "web.sock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_the_page_attaches_is_served(page: Path, directory: Path) -> None:
    settings = Settings()
    opened = 0
    for words in typed(page, directory):
        if words[0] == "qemu-nbd":
            subprocess.run([words[0], f"--pid-file={directory}/pid", *words[1:]], check=True)
        elif words[0] == "qemu-img":
            subprocess.run([*words, "-q"], check=True)
        elif words[:3] == ["xenpy", "serve", "block"]:
            filters = [given for word, given in pairwise(words)
                       if word == "--filter"]  # fmt: skip
            options = parse_words([word for word in words[3:] if "=" in word])
            settings = Settings.parse({**options, "filter": shlex.join(filters)})
        else:
            assert words[:3] == ["xenpy", "attach", "block"]
            plan = DRIVER.plan(parse_words(words[4:]), DRIVER.kind)
            keys = ImageKeys.parse({key: str(text) for key, text in plan.backend_keys.items()})
            log = BoundedLog(logging.getLogger("pages"), "vbd3/7/51728")
            store = open_image(keys, settings, FilterPlace("vbd3/7/51728", keys.readonly, log))
            content = memoryview(bytearray(b"x" * 4096))
            store.write(content, 4096)
            store.flush()
            store.readinto(content, 4096)
            assert bytes(content) == (bytes(4096) if "null" in keys.target else b"x" * 4096)
            store.close()
            opened += 1
    assert opened >= 2


def test_the_page_has_every_target_and_every_filter() -> None:
    text = (ROOT / PAGES[0]).read_text()
    assert all(f"`{name}" in text for name in FILTERS)
    assert all(f"`{scheme}:" in text for scheme in SCHEMES if not scheme.startswith("nbds"))


@pytest.mark.parametrize(
    ("verb", "names"), [("serve", [*FILTERS]), ("attach", ["memory:", "null:", "nbd:", "python:"])]
)
def test_the_help_has_every_target_and_every_filter(
    verb: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main.main([verb, "--help"])
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in names)


def test_the_first_store_is_twenty_lines() -> None:
    source = (ROOT / "docs/howto/ram_store.py").read_text().split('"""', 2)[2]
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
