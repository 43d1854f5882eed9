# SPDX-License-Identifier: MIT
"""The protocol that the documentation shows: as short as it says, and it works."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.bare import asked_twice
from fences import ROOT
from xenpy.backend import DeviceError
from xenpy.cli.main import main
from xenpy.ring_backend import driver_of
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.world import device, fakes, reconfigure, serving
from xenpy.types import DOM0, DomId

SHOWN = {
    "xor.py": 16, "ask_xor.py": 10, "bare_xor.py": 20, "shout.py": 8, "whisper.py": 9,
    "dimmer.py": 27,
}  # fmt: skip
"""Lines that each may have."""


@pytest.mark.parametrize(("name", "lines"), list(SHOWN.items()))
def test_it_is_short(name: str, lines: int) -> None:
    text = (ROOT / "docs/howto" / name).read_text()
    code = [line for line in text.splitlines() if line and not line.startswith(("#", '"""'))]
    assert len(code) <= lines
    assert "type: ignore" not in text


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_it_is_typed(checker: str) -> None:
    files = [f"docs/howto/{name}" for name in (*SHOWN, "test_xor.py")]
    how = {
        "mypy": ["--strict", "--cache-dir", os.devnull],
        "pyright": ["--pythonpath", sys.executable],
    }
    done = subprocess.run(
        [sys.executable, "-m", checker, *how[checker], *files], cwd=ROOT, capture_output=True,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)}, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_backend_without_the_framework() -> None:
    xen, guest = FakeXen(), DomId(1)
    halves = xen.domain(DOM0), xen.domain(guest)
    assert asked_twice(*halves, DOM0, guest) == [b"   ", b"\0\0\0"]
    assert not any(xen.census().values())
    xen.close()


def test_the_dimmer_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/howto")
    dimmer = importlib.import_module("dimmer")
    driver = driver_of(dimmer.Dimmer, dimmer.DIMMER, settings=dimmer.Dimmer.settings)

    async def main() -> None:
        async with (
            fakes() as world, serving(world, driver), device(world, driver),
            world.connect(dimmer.DIMMER) as link,
        ):  # fmt: skip

            async def brightest() -> int:
                return (await link.request(dimmer.Request(1, 50))).level

            assert (await brightest(), link.backend["max-level"]) == (10, "10")
            await reconfigure(world, driver, {"max-level": "30"})
            assert await brightest() == 30
            with pytest.raises(DeviceError, match="100 levels"):
                await reconfigure(world, driver, {"max-level": "101"})
            assert await brightest() == 30

    asyncio.run(main())


MINE = """\
import sys
sys.path.insert(0, {howto!r})
from xenpy import main
import xor
class Mine(xor.Xor):
    pass
main(xor.Xor)
main(Mine)
print("imported")
"""


def test_a_file_that_ends_with_main(tmp_path: Path) -> None:
    """Run, it serves; imported, it does nothing."""
    (tmp_path / "mine.py").write_text(MINE.format(howto=str(ROOT / "docs/howto")))
    for words, told in (
        (["mine.py", "--help"], "usage: xenpy run"),
        (["-c", "import mine"], "imp"),
    ):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        )  # fmt: skip
        assert done.stdout.startswith(told)


def test_help_needs_no_xen_library() -> None:
    code = (
        "import sys\n"
        "sys.modules['xenpy._ffi._stable'] = None\n"
        "from xenpy.cli.main import main\n"
        "assert main(['run', 'docs/howto/xor.py']) == 77\n"
        "main(['run', '--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
    )  # fmt: skip
    assert done.stdout.startswith("usage")


@pytest.mark.parametrize(
    ("name", "text", "status"),
    [
        ("nothing.py", "", 2),
        ("json.py", "", 2),
        ("broken.py", "1 / 0", 1),
        ("bare.py", "from xenpy import Backend\nclass B(Backend): pass", 1),
        ("two.py", "from xenpy import Backend\nclass A(Backend): pass\nclass B(A): pass", 2),
        ("absent.py:X", None, 2),
        ("file.txt", "", 2),
    ],
)
def test_files_that_are_no_backend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | None, status: int
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    before = list(sys.path)
    try:
        assert main(["run", str(tmp_path / name)]) == status
    finally:
        sys.path[:] = before
        if name != "json.py":
            sys.modules.pop(name.partition(".")[0], None)
    assert capsys.readouterr().err.startswith("xenpy: ")
