# SPDX-License-Identifier: MIT
"""The command line of xenvm: what it takes, what it teaches, which status it gives."""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from xenpy.vm import cli, lanes, progress, verbs
from xenpy.vm.context import Context
from xenpy.vm.errors import HARNESS, INTERRUPTED, USAGE, UsageError, VmDiedError, VmError

VERBS = [
    name
    for action in cli.parser()._actions
    if isinstance(action, argparse._SubParsersAction)
    for name in action.choices
]


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """main() sets signal handlers and the verbosity; and no test may touch the true cache."""
    monkeypatch.setenv("XENVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XENVM_ACCEL", "tcg")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    progress.quiet(False)
    for number, handler in before.items():
        signal.signal(number, handler)


class Calls:
    """Stands for a verb; remembers how it was called."""

    def __init__(self, result: int | BaseException = 0) -> None:
        self.result = result
        self.context = Context()
        self.arguments = argparse.Namespace()

    def __call__(self, context: Context, arguments: argparse.Namespace) -> int:
        self.context, self.arguments = context, arguments
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, result: int | BaseException = 0) -> Calls:
    calls = Calls(result)
    calls.__doc__ = "Nothing."
    monkeypatch.setattr(lanes if name == "test" else verbs, name, calls)
    return calls


def status_of(*words: str) -> int:
    """The exit status of the command line, however it is given."""
    try:
        return cli.main(words)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else -1


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_by_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(verb, "--help") == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert f"xenvm {verb}" in text.split("example", 1)[1]


def test_the_general_help_shows_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n    {verb} " in text
    assert f"{HARNESS} the harness failed" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "required: VERB"),
        (("fly",), "invalid choice: 'fly'"),
        (("exec",), "no command for exec"),
        (("exec", "--"), "no command for exec"),
        (("exec", "xl", "info"), "a command comes after `--`: xenvm exec -- xl info"),
        (("exec", "--release", "sid", "--", "true"), "invalid choice: 'sid'"),
        (("exec", "--memory", "none", "--", "true"), "--memory"),
        (("exec", "--memory", "-4", "--", "true"), "not a positive number"),
        (("up", "now"), "unknown: now; see `xenvm up --help`"),
        (("down", "--", "web"), "takes no command"),
        (("push", "only-one"), "DST"),
        (("status", "--name", "one"), "unknown: --name one"),
        (("down", "--name", "../up"), "not a name for an instance"),
        (("test", "tests/no-such-directory"), "no such tests: tests/no-such-directory"),
        (("test", "setup.py"), "no such tests: setup.py"),
        (("test", "--fast", "--all"), "not allowed with"),
        (("bench",), "no command for bench"),
        (
            ("bench", "fly"),
            "there are `block`, `streams`; a command comes after `--`: xenvm bench -- fly",
        ),
        (
            ("bench", "--check", "--", "true"),
            "--check and --cells are for `xenvm bench block` and `streams`",
        ),
        (("bench", "block", "--", "true"), "takes no command"),
        (("bench", "block", "--cells", "none"), "no cell matches none"),
    ],
)
def test_wrong_usage_is_explained(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*words) == USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err


@pytest.mark.parametrize("status", [0, 1, 7, 125, 255])
def test_the_status_is_the_verb_s(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "execute", status)
    assert status_of("exec", "--", "true") == status


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (VmError("no room", hint="make some"), HARNESS, "xenvm: hint: make some"),
        (VmDiedError("QEMU is gone", details="its words"), HARNESS, "  | its words"),
        (UsageError("not so"), USAGE, "xenvm: error: not so"),
        (PermissionError(13, "Permission denied"), HARNESS, "xenvm: error: PermissionError"),
        (KeyboardInterrupt(), INTERRUPTED, ""),
    ],
)
def test_failures_have_their_own_status(
    failure: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(monkeypatch, "execute", failure)
    assert status_of("exec", "--", "true") == status
    assert message in capsys.readouterr().err


def test_the_command_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "execute")
    assert status_of("exec", "--fresh", "--", "sh", "-c", "--release", "--", "-q") == 0
    assert calls.arguments.command == ["sh", "-c", "--release", "--", "-q"]
    assert calls.arguments.fresh
    assert calls.context.release_name is None


def test_pytest_s_words_need_no_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "test")
    assert status_of("test", "--fast", "tests/unit", "-k", "ring", "-x") == 0
    assert calls.arguments.command == ["tests/unit", "-k", "ring", "-x"]
    assert calls.arguments.fast


def test_options_reach_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = stand_in(monkeypatch, "execute")
    words = ["--release", "bookworm", "--icount", "--memory", "3000", "--store", "oxenstored"]
    words += ["--watchdog", "9", "--save-console", str(tmp_path / "log"), "--cold"]
    assert status_of("exec", *words, "--name", "one", "--", "true") == 0
    context = calls.context
    assert context.release.xen == "4.17"
    assert context.machine.icount
    assert (context.machine.memory, context.machine.store) == (3000, "oxenstored")
    assert (context.patience, context.name, context.cold) == (9.0, "one", True)
    assert context.save_console == tmp_path / "log"


def test_a_dry_run_shows_qemu_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("exec", "--dry-run", "--release", "bookworm", "--", "true") == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[0] == "qemu-system-x86_64"
    assert words[words.index("-accel") + 1] == "tcg,thread=multi"
    assert f"{tmp_path}/cache/images/bookworm-KEY/xen" in words
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_of_icount(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("up", "--dry-run", "--icount") == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[words.index("-accel") + 1] == "tcg,thread=single"
    assert words[words.index("-icount") + 1] == "shift=1,sleep=off"


def test_a_dry_run_of_a_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    for words, pinned in ((["--", "true"], False), (["block"], True)):
        assert status_of("bench", "--dry-run", *words) == 0
        shown = shlex.split(capsys.readouterr().out)
        assert shown[shown.index("-icount") + 1] == "shift=1,sleep=off"
        assert ("dom0_max_vcpus=1" in shown[shown.index("-append") + 1].split()) is pinned


def test_status_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("status", "--json") == 0
    assert capsys.readouterr().out == "[]\n"
    assert status_of("status") == 0
    assert "nothing runs" in capsys.readouterr().out


def test_verbs_that_need_a_machine_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["push", __file__, "/x"], ["pull", "/x", "x"], ["console"], ["logs"]):
        assert status_of(*words) == HARNESS
        said = capsys.readouterr().err
        assert "xenvm: error: " in said
        assert "xenvm up" in said


def test_down_twice_is_harmless() -> None:
    assert status_of("down") == 0
    assert status_of("--", "down") == USAGE
