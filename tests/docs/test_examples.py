# SPDX-License-Identifier: MIT
"""What the Markdown says one can type: it runs, or the real parsers take it."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fences import ROOT, Command, Fence, agrees, commands, fences, pages
from xenpy.cli import (
    attach,
    block_bench,
    block_info,
    block_read,
    block_resize,
    block_write,
    console_every,
    console_give_back,
    console_take,
    detach,
    doctor,
    evtchn_bind,
    evtchn_ls,
    evtchn_notify,
    grant_copy,
    grant_ls,
    grant_map,
    grant_share,
    ls,
    main,
    new,
    proxy,
    reconfigure,
    replay,
    run,
    serve,
    tap,
    top,
    vchan,
)
from xenpy.cli.block_common import device_path
from xenpy.cli.common import find_driver, plan_of
from xenpy.types import DOM0
from xenpy.vm import cli, guest, lanes
from xenpy.vm.dom0_demo import Report
from xenpy.vm.errors import UsageError

ALL = [fence for page in pages() for fence in fences(page)]
SPOKEN = {"c", "console", "mermaid", "python", "text", "toml"}
DIRECTIVES = ("{toctree}", "{literalinclude}")
UNCHECKED = {
    "!", "cat", "cd", "cmp", "echo", "grep", "head", "kill", "mkdir", "modprobe", "qemu-img",
    "qemu-nbd", "sudo", "systemctl", "tar", "truncate", "until", "vagrant", "wait",
    "xenstore-read", "xentop", "xl",
}  # fmt: skip
"""Commands that are not ours; tests/vm, tests/xen and test_store_pages type them in."""
SETTING_UP = ("python3 -m venv .venv", ".venv/bin/", "sudo apt-get install ")


def of(language: str) -> list[Fence]:
    return [fence for fence in ALL if fence.language == language]


CONSOLE = [command for fence in of("console") for command in commands(fence)]


def run_python(*words: str) -> str:
    """What Python prints; a warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *words], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("fence", ALL, ids=str)
def test_a_block_says_what_it_is(fence: Fence) -> None:
    assert fence.language in SPOKEN or fence.language.startswith(DIRECTIVES)


@pytest.mark.parametrize("fence", of("python"), ids=str)
def test_python_prints_what_is_shown(fence: Fence) -> None:
    assert run_python("-c", fence.text) == (fence.shown or "")


@pytest.mark.parametrize("fence", of("toml"), ids=str)
def test_toml_is_toml(fence: Fence) -> None:
    assert tomllib.loads(fence.text)


@pytest.mark.parametrize("command", CONSOLE, ids=str)
def test_a_command_is_taken(command: Command, accepted: Callable[[Sequence[str]], None]) -> None:
    if command.text.startswith(SETTING_UP):
        return
    words = shlex.split(command.text)
    if words[0] == "python3":
        assert agrees(command.shown, run_python(*words[1:]))
    elif words[0] == "xenpy":
        for inner in shell_commands(command.text):
            if inner and inner[0] == "xenpy":
                accepted(inner)
    elif words[0] not in UNCHECKED:
        accepted(words)


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Sequence[str]], None]:
    """Gives a command to the parser that would take it, and sees to its verb not being run."""

    def plan(args: argparse.Namespace) -> int:
        plan_of(args)
        return 0

    def options(args: argparse.Namespace) -> int:
        serve.options_of(args, find_driver(args.driver))
        return 0

    def between(args: argparse.Namespace) -> int:
        proxy.plan_of(args, find_driver(args.driver))
        return 0

    def named(args: argparse.Namespace) -> int:
        assert device_path(args.device, DOM0).startswith("/local/domain/0/")
        return 0

    for module in (attach, detach, block_resize, reconfigure):
        monkeypatch.setattr(module, "run", plan)
    for verb in (block_bench, block_info, block_read, block_write, replay):
        monkeypatch.setattr(verb, "run", named)

    def own(args: argparse.Namespace) -> int:
        find_driver(args.file)
        return 0

    for module in (
        console_every, console_give_back, console_take, doctor, evtchn_bind, evtchn_ls,
        evtchn_notify, grant_copy, grant_ls, grant_map, grant_share, ls, new, tap, top,
    ):  # fmt: skip
        monkeypatch.setattr(module, "run", lambda _: 0)
    monkeypatch.setattr(serve, "run", options)
    monkeypatch.setattr(proxy, "run", between)
    monkeypatch.setattr(run, "run", own)
    for verb in ("run_listen", "run_connect"):
        monkeypatch.setattr(vchan, verb, lambda _: 0)

    def accept(words: Sequence[str]) -> None:
        match words:
            case ["vagrant/xenvm", *rest]:
                for inner in taken_by_xenvm(rest):
                    accept(inner)
            case ["xenpy", *rest]:
                assert main.main(rest) == 0
            case ["pytest", *rest]:
                taken_by_pytest(rest, tmp_path)
            case ["xenvm-guest", *rest]:
                guest.parser().parse_args(rest)
            case _:
                raise AssertionError(f"nobody checks {words}")

    return accept


def taken_by_pytest(words: Sequence[str], directory: Path) -> None:
    """Give the options to pytest and our plugin, where there are no tests."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xenpy.testing.plugin", *words], cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == lanes.NOTHING_COLLECTED, done.stdout + done.stderr


def taken_by_xenvm(words: Sequence[str]) -> list[list[str]]:
    """Our own commands in what `xenvm exec` would run; SystemExit if it takes not even that."""
    place = words.index("--") if "--" in words else len(words)
    arguments, unknown = cli.parser().parse_known_args(words[:place])
    tail = list(words[place + 1 :])
    if arguments.verb == "test":
        # Its paths must exist, too.
        lanes.Selection.of(unknown, fast=arguments.fast, everything=arguments.all)
    else:
        assert not unknown
    has_command = arguments.verb == "exec" or (
        arguments.verb == "bench" and arguments.benchmark is None
    )
    assert bool(tail) == has_command
    inner = shell_commands(tail[0]) if len(tail) == 1 else [tail]
    return [words for words in inner if words and words[0] in ("xenpy", "xenvm-guest")]


def shell_commands(line: str) -> list[list[str]]:
    """The simple commands of a line of shell, without their redirections."""
    found: list[list[str]] = [[]]
    redirected = False
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    # Words end at blanks and at the shell's own signs, not at a colon.
    lexer.whitespace_split = True
    for word in lexer:
        if word == "!" or redirected:
            redirected = False
        elif set(word) <= set("<>&") and set(word) & set("<>"):
            redirected = True
            if found[-1][-1:] in (["1"], ["2"]):
                found[-1].pop()
        elif set(word) <= set("();|&"):
            found.append([])
        else:
            found[-1].append(word)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "vagrant/xenvm exec xl list",
        "vagrant/xenvm sideways",
        "vagrant/xenvm bench block -- true",
        "vagrant/xenvm bench --rounds 3",
        "vagrant/xenvm test tests/unit/test_no_such.py",
        "vagrant/xenvm exec -- xenpy serv block",
        "vagrant/xenvm exec -- 'cd / && xenpy attach block 1 vdef=xvda 2>&1'",
        "vagrant/xenvm exec -- 'true; xenvm-guest crate web > x'",
        "xenpy attach block -1 vdev=xvda",
        "xenpy serve block forse=1",
        "xenpy serve block --filter sloth",
        "xenpy attach block 7 vdev=xvda target=memory:much",
        "xenpy block read sdz99",
        "xenpy block rread xvdb",
        "pytest --xen --xen-release sid",
        "pytest --xem",
        "frobnicate",
    ],
)
def test_what_is_mistyped_is_not_taken(
    line: str, accepted: Callable[[Sequence[str]], None]
) -> None:
    with pytest.raises((SystemExit, UsageError, AssertionError)):
        accepted(shlex.split(line))


def test_what_is_shown_is_compared() -> None:
    assert agrees(["a ... b", "...", "c"], "a 1 b\nx\ny\nc\n")
    assert agrees(["..."], "")
    assert agrees([], "")
    assert not agrees([], "a\n")
    assert not agrees(["a ... b"], "a b c\n")
    assert not agrees(["a", "c"], "a\nb\nc\n")


def test_the_readme_shows_what_the_demo_prints() -> None:
    (shown,) = (fence for fence in of("text") if fence.path == Path("README.md"))
    ours = [line.split("  ")[0] for line in Report().table().splitlines()]
    assert [line.split("  ")[0] for line in shown.text.splitlines()] == ours


def test_the_readme_s_example_is_fifteen_lines_at_most() -> None:
    (example,) = (fence for fence in of("python") if fence.path == Path("README.md"))
    assert len([line for line in example.text.splitlines() if line]) <= 15
    (other,) = (fence for fence in of("python") if fence.path == Path("docs/tutorial/ring.md"))
    assert (other.text, other.shown) == (example.text, example.shown)


@pytest.mark.parametrize("verb", ["serve", "attach", "detach", "block", "console", "vchan"])
def test_xenpy_s_help_teaches_by_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main.main([verb, "--help"])
    assert f"xenpy {verb}" in capsys.readouterr().out.split("example", 1)[1]
