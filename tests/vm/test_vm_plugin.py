# SPDX-License-Identifier: MIT
"""`pytest --xen` in projects outside of this repository, on a real Xen.

What becomes of each outcome, and of every way to fail, is in tests/unit/test_pytest_plugin.py.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT, is_alive, qemu_of, wait_until

from xenpy.cli.new import generate

LIMIT = 1500
pytestmark = [pytest.mark.long, pytest.mark.timeout(1600)]

PYPROJECT = """\
[project]
name = "lamp"

[tool.pytest.ini_options]
addopts = "-p xenpy.testing.plugin --strict-markers"
pythonpath = ["src"]
"""
CONFTEST = """\
import pytest

def pytest_addoption(parser):
    parser.addoption("--watts", type=int, default=0)

@pytest.fixture(scope="module")
def watts(pytestconfig):
    return pytestconfig.getoption("watts")
"""
PACKAGE = """\
from typing import NamedTuple

from xenpy import Backend, RingProtocol
from xenpy.wire import i16, u32, u64


class Level(NamedTuple):
    id: u64
    watts: u32


class Lit(NamedTuple):
    id: u64
    status: i16


class Lamp(Backend[Level, Lit]):
    protocol = RingProtocol("lamp", Level, Lit)

    def handle(self, request):
        return Lit(request.id, request.watts)
"""
ON_XEN = """\
import asyncio
import subprocess

import pytest
from lamp import Lamp, Level, Lit

from xenpy.testing.ring import loopback

pytestmark = pytest.mark.xen


def store(*words):
    return subprocess.run(["xenstore", *words], capture_output=True, text=True).stdout


def test_both_halves_meet(watts):
    async def run():
        async with loopback(Lamp) as device:
            assert await device.request(Level(1, watts)) == Lit(1, 60)

    asyncio.run(run())
    store("write", "/tool/lamp", "was here")


def test_a_guest_and_a_failure():
    subprocess.run(["xenvm-guest", "create", "web"], check=True)
    with open("/dev/kmsg", "w") as log:
        log.write("<2>lamp: about to fail\\n")
    print("on standard output")
    assert subprocess.run(["xl", "domid", "web"]).returncode == 1, "there is a guest"


@pytest.mark.skipif("not __import__('os').path.exists('/dev/xen/absent')", reason="no such device")
def test_is_skipped(): ...


@pytest.mark.parametrize("level", [1, pytest.param(2, marks=pytest.mark.xfail(reason="dim"))])
def test_levels(level):
    assert level == 1
"""
PRISTINE = """\
import subprocess

import pytest


@pytest.mark.xen
def test_nothing_is_left_of_the_other_module():
    assert subprocess.run(["xenstore", "read", "/tool/lamp"], capture_output=True).returncode
    assert subprocess.run(["xl", "domid", "web"], capture_output=True).returncode


def test_here():
    from pathlib import Path
    assert Path(__file__).exists()
"""


def command(*words: str) -> list[str]:
    """As xenvm's tests start it: nothing outlives us."""
    tied = ["env", "--default-signal=INT", "setpriv", "--pdeathsig", "KILL", "--"]
    return [*tied, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", *words]


def environment(site: Path = ROOT) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.fspath(site)}


def run(project: Path, *words: str, site: Path = ROOT) -> tuple[int, str, dict[str, str]]:
    """The status of `pytest --xen`, what it said, and each test's outcome by JUnit's words.

    `site`: where xenpy is.
    """
    junit = project.parent / "results.xml"
    done = subprocess.run(
        command("--xen", f"--junitxml={junit}", *words), cwd=project, env=environment(site),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    assert junit.exists(), done.stdout
    outcomes = {
        f"{case.get('classname')}::{case.get('name')}": case[0].tag if len(case) else "passed"
        for case in ElementTree.parse(junit).iter("testcase")
    }
    return done.returncode, done.stdout, outcomes


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project without tests so far."""
    root = tmp_path / "lamp"
    (root / "src").mkdir(parents=True)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "conftest.py").write_text(CONFTEST)
    (root / "src/lamp.py").write_text(PACKAGE)
    return root


def test_a_project_of_somebody_s(project: Path) -> None:
    (project / "test_lamp.py").write_text(ON_XEN)
    (project / "test_pristine.py").write_text(PRISTINE)
    status, said, outcomes = run(project, "--watts=60")
    assert outcomes == {
        "test_pristine::test_here": "passed",
        "test_lamp::test_both_halves_meet": "passed",
        "test_lamp::test_a_guest_and_a_failure": "failure",
        "test_lamp::test_is_skipped": "skipped",
        "test_lamp::test_levels[1]": "passed",
        "test_lamp::test_levels[2]": "skipped",
        "test_pristine::test_nothing_is_left_of_the_other_module": "passed",
    }, said
    assert status == 1
    assert "1 failed, 4 passed, 1 skipped, 1 xfailed" in said
    assert re.search(r"^test_lamp\.py:\d+: AssertionError$", said, re.MULTILINE)
    for section, words in (
        ("Captured stdout call", "on standard output"),
        ("dom0's kernel", "lamp: about to fail"),
        ("/var/log/xen/console/guest-web.log", "guest web is up"),
        ("/var/log/xen/xl-web.log", "Waiting for domain web"),
        ("dom0's console, since its module began", "lamp: about to fail"),
    ):
        found = re.search(rf"^-+ {re.escape(section)} -+$(.*?)^(-|=)", said, re.M | re.S)
        assert found is not None, f"no section {section!r}\n{said}"
        assert words in found[1], said


def test_a_machine_that_dies_costs_one_test(project: Path) -> None:
    (project / "test_dies.py").write_text(
        "import pytest, time\n"
        "pytestmark = pytest.mark.xen\n"
        "def test_before(): ...\n"
        "def test_panics():\n"
        "    open('/proc/sysrq-trigger', 'w').write('c')\n"
        "    time.sleep(600)\n"
        "def test_after(): ...\n"
    )
    status, said, outcomes = run(project)
    assert outcomes == {
        "test_dies::test_before": "passed",
        "test_dies::test_panics": "failure",
        "test_dies::test_after": "passed",
    }, said
    assert status == 1
    assert "while this test ran: dom0's kernel panicked" in said
    assert "sysrq triggered crash" in said


def test_the_example_of_the_documentation_on_both_releases(tmp_path: Path) -> None:
    # As pip installs it: no checkout around it, and xenpy/drivers is no link.
    site = tmp_path / "site-packages"
    shutil.copytree(ROOT / "xenpy", site / "xenpy", ignore=shutil.ignore_patterns("__pycache__"))
    root = tmp_path / "example"
    root.mkdir()
    shutil.copy(ROOT / "docs/howto/test_on_xen.py", root)
    releases = ("--xen-release=trixie,bookworm", "-p", "xenpy.testing.plugin")
    status, said, outcomes = run(root, *releases, site=site)
    assert status == 0, said
    assert set(outcomes.values()) == {"passed"}
    assert len(outcomes) == 2 + 3 * 2
    assert "test_on_xen::test_it_doubles[xen-21-bookworm]" in outcomes


def test_what_xenpy_new_makes(tmp_path: Path) -> None:
    generate("lamp", tmp_path / "lamp")
    status, said, outcomes = run(tmp_path / "lamp")
    assert status == 0, said
    assert list(outcomes.values()) == ["passed"] * 24


def test_ctrl_c_ends_the_machine(project: Path) -> None:
    (project / "test_sleeps.py").write_text(
        "import pytest, time\n"
        "@pytest.mark.xen\n"
        "def test_sleeps():\n"
        "    print('asleep', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        command("--xen", "-s"), cwd=project, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = next((line for line in process.stdout if "asleep" in line), "")
        assert line, "it ended before it slept"
        qemu = qemu_of(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 2
        wait_until(lambda: not is_alive(qemu))


@pytest.mark.long
@pytest.mark.alone
def test_a_module_costs_some_seconds(project: Path) -> None:
    """Beside its tests: what a user waits for after each edit."""

    def seconds(*words: str) -> float:
        began = time.monotonic()
        status, said, _ = run(project, *words)
        assert status == 0, said
        return time.monotonic() - began

    for name in "ab":
        (project / f"test_{name}.py").write_text(
            "import pytest\n@pytest.mark.xen\ndef test_nothing(): ...\n"
        )
    assert (
        least(lambda: seconds("test_a.py", "test_b.py")) - least(lambda: seconds("test_a.py")) < 9
    )


def least(measure: Callable[[], float]) -> float:
    return min(measure() for _ in range(3))
