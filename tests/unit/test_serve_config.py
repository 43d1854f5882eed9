# SPDX-License-Identifier: MIT
"""xenpy.toml: what it may say, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenpy.cli import serve
from xenpy.cli.main import main, parser
from xenpy.drivers.block.driver import DRIVER
from xenpy.serve_config import ServeConfig, read

WHOLE = """\
driver = "block"
kind = "vbd3"
rundir = "/run/there"
stats = "/run/stats.json"
store = "/run/xenstored/socket"
log = "debug"

[options]
queues = 4
direct = true
tier = "native"
filter = ["stats", "delay,read=10"]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "block.toml"
    path.write_text(text)
    return path


def test_all_of_it(tmp_path: Path) -> None:
    assert read(written(tmp_path, WHOLE)) == ServeConfig(
        driver="block", kind="vbd3", rundir="/run/there", stats="/run/stats.json",
        store="/run/xenstored/socket", log="debug",
        options={"queues": "4", "direct": "1", "tier": "native"},
        filters=("stats", "delay,read=10"),
    )  # fmt: skip
    assert read(written(tmp_path, "")) == ServeConfig()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("driver = ", "Invalid value"),
        ("drvier = 'block'", "there is no 'drvier'; there are driver, kind"),
        ("driver = 4", "driver is 4; give a text"),
        ("kind = 'vbd3/7'", "kind is 'vbd3/7'"),
        ("kind = '../x'", "kind is '../x'"),
        ("log = 'loud'", "log is 'loud'; give one of debug"),
        ("options = 4", "options is a table"),
        ("[options]\nqueues = 1.5", "options.queues is 1.5"),
        ("[options]\nfilter = [1]", "options.filter is a list of texts"),
        ("[options]\nqueues = [1]", r"options.queues is \[1\]"),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=why) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")


def options(tmp_path: Path, *words: str) -> dict[str, str]:
    args = parser().parse_args(["serve", "block", *words])
    return dict(serve.options_of(args, DRIVER, read(written(tmp_path, WHOLE))))


def test_the_command_line_wins(tmp_path: Path) -> None:
    kept = {"direct": "1", "tier": "native"}
    filters = "stats delay,read=10"
    assert options(tmp_path) == {**kept, "queues": "4", "filter": filters}
    assert options(tmp_path, "queues=2") == {**kept, "queues": "2", "filter": filters}
    assert options(tmp_path, "--filter", "readonly")["filter"] == "readonly"
    assert options(tmp_path, "filter=readonly")["filter"] == "readonly"


@pytest.mark.parametrize(
    ("text", "words", "why"),
    [
        ("", [], "which driver?"),
        ("driver = 'nonsense'", [], "no driver 'nonsense'"),
        ("driver = 'block'\n[options]\nspeed = 9", [], "block has no option 'speed'"),
        ("driver = 'block'", ["speed=9"], "block has no option 'speed'"),
        ("driver = 'block'\n[options]\nqueues = 99", [], "queues"),
        ("driver =", [], "Invalid value"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], why: str
) -> None:
    assert main(["serve", "--config", str(written(tmp_path, text)), *words]) == 2
    assert why in capsys.readouterr().err


def test_no_driver_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 2
    assert "which driver?" in capsys.readouterr().err
