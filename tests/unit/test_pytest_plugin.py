# SPDX-License-Identifier: MIT
"""`pytest --xen` in a project of somebody's, with a process in the place of dom0."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = """\
from stand_in_dom0 import pytest_xen_dom0

pytest_plugins = ["xenpy.testing.plugin"]
"""
TOML = """\
[tool.pytest.ini_options]
addopts = "--strict-markers --strict-config -ra"
xfail_strict = true
junit_family = "xunit1"
filterwarnings = ["error"]
"""
LIMIT = 100


@dataclass
class Case:
    """A test's outcome in a JUnit file."""

    outcome: str
    message: str = ""
    text: str = ""
    properties: dict[str, str] = field(default_factory=dict[str, str])


@dataclass
class Result:
    """What a run of pytest came to."""

    status: int
    said: str
    cases: dict[str, Case] = field(default_factory=dict[str, Case])

    def outcomes(self) -> dict[str, str]:
        return {name: case.outcome for name, case in self.cases.items()}


@dataclass
class Project:
    """A project outside the repository."""

    root: Path

    def write(self, **files: str) -> None:
        """Modules by their names."""
        for name, text in files.items():
            (self.root / f"{name}.py").write_text(textwrap.dedent(text))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        return {**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **(more or {})}

    def pytest(self, *words: str, env: Mapping[str, str] | None = None) -> Result:
        junit = self.root.parent / "junit.xml"
        junit.unlink(missing_ok=True)
        done = subprocess.run(
            self.command(f"--junitxml={junit}", *words), cwd=self.root, env=self.environment(env),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=LIMIT, check=False,
        )  # fmt: skip
        cases = read(junit) if junit.exists() else {}
        return Result(done.returncode, done.stdout, cases)

    def machines(self) -> list[str]:
        """The release of each machine that was made."""
        path = self.root / "machines"
        return path.read_text().split() if path.exists() else []


def read(junit: Path) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        found = Case("passed")
        for part in case:
            if part.tag in ("failure", "error", "skipped"):
                found = Case(part.tag, part.get("message", ""), part.text or "")
            elif part.tag == "properties":
                found.properties = {each.get("name", ""): each.get("value", "") for each in part}
            else:
                found.text += part.text or ""
        cases[name] = found
    return cases


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "lamp"
    root.mkdir()
    (root / "pyproject.toml").write_text(TOML)
    (root / "conftest.py").write_text(CONFTEST)
    return Project(root)


ALL_KINDS = """
    import os, sys, warnings
    import unittest
    import pytest
    from lamp import switch

    pytestmark = pytest.mark.xen

    def test_passes(record_property):
        record_property("watts", 60)
        assert switch.on() == "on"

    def test_fails():
        print("to standard output")
        os.write(2, b"to standard error\\n")
        left, right = [1, 2, 3], [1, 2, 4]
        assert left == right

    @pytest.mark.skip(reason="not today")
    def test_is_skipped(): ...

    @pytest.mark.skipif(sys.version_info > (3,), reason="at once")
    def test_is_skipped_by_a_condition(): ...

    def test_skips_itself():
        pytest.skip("inside")

    @pytest.mark.xfail(reason="not yet")
    def test_is_expected_to_fail():
        assert False

    @pytest.mark.xfail(reason="but works")
    def test_is_expected_to_fail_and_does_not(): ...

    @pytest.mark.parametrize("level", [0, 1, pytest.param("a b/c[é]", id="odd [id] é")])
    def test_levels(level):
        assert level != 1

    @pytest.fixture
    def broken():
        raise OSError(5, "no lamp")

    def test_cannot_be_set_up(broken): ...

    @pytest.fixture
    def leaking():
        yield
        raise RuntimeError("still warm")

    def test_cannot_be_torn_down(leaking): ...

    @pytest.mark.filterwarnings("default")
    def test_warns():
        warnings.warn("a bulb is old", DeprecationWarning)

    class TestInAClass:
        def test_method(self, lit):
            assert lit

    class TestOfUnittest(unittest.TestCase):
        def test_method(self):
            self.assertEqual(1, 2)
"""
CONFTEST_OF_THE_PROJECT = (
    CONFTEST
    + """
import pytest

def pytest_addoption(parser):
    parser.addoption("--lit", default="no")

@pytest.fixture(scope="session")
def lit(pytestconfig):
    return pytestconfig.getoption("lit") == "yes"
"""
)


def without_what_differs(said: str) -> list[str]:
    """The lines of a run but for the header, and with no times, which the last line has too."""
    lines = re.sub(r" in \d+\.\d+s =+|=+ (?=\d)", "", said).splitlines()
    begin = next(place for place, line in enumerate(lines) if "collected " in line)
    return lines[begin:]


def test_every_outcome_is_as_if_it_had_run_here(project: Project) -> None:
    (project.root / "lamp").mkdir()
    (project.root / "lamp/__init__.py").touch()
    (project.root / "lamp/switch.py").write_text("def on(): return 'on'")
    project.write(test_kinds=ALL_KINDS, conftest=CONFTEST_OF_THE_PROJECT)
    words = ("--lit=yes", "-rA", "-l", "-v")
    plugins = ("-p", "xenpy.testing.plugin", "-p", "stand_in_here")
    here = project.pytest(*plugins, "--xen-here", *words)
    assert not project.machines()
    there = project.pytest("--xen", *words)
    assert project.machines() == ["trixie"]
    assert (there.status, here.status) == (1, 1), there.said + here.said
    assert there.cases == here.cases
    assert len(there.cases) == 15
    assert without_what_differs(there.said) == without_what_differs(here.said)
    assert there.cases["test_kinds::test_passes"].properties == {"watts": "60"}
    assert "Captured stderr call" in there.said


def test_without_xen_they_are_skipped_and_it_is_said_why(project: Project) -> None:
    project.write(
        test_lamp="""
            import pytest

            def test_here(): ...

            @pytest.mark.xen
            def test_there():
                raise SystemExit
        """
    )
    result = project.pytest()
    assert result.status == 0
    assert result.outcomes() == {
        "test_lamp::test_here": "passed",
        "test_lamp::test_there": "skipped",
    }
    assert "needs Xen: run `pytest --xen`" in result.said
    assert not project.machines()


def test_each_module_has_a_machine_and_comes_after_what_needs_none(project: Project) -> None:
    text = """
        import pytest, os

        @pytest.mark.xen
        def test_there():
            assert "STAND_IN_DIRECTORY" in os.environ

        def test_here():
            assert "STAND_IN_DIRECTORY" not in os.environ
    """
    project.write(test_a=text, test_b=text, test_c="def test_no_xen(): ...")
    result = project.pytest("--xen", "-v")
    assert result.status == 0
    assert project.machines() == ["trixie"] * 2
    order = re.findall(r"^(test_\w)\.py::(\w+)", result.said, re.MULTILINE)
    assert order == [
        ("test_a", "test_here"), ("test_b", "test_here"), ("test_c", "test_no_xen"),
        ("test_a", "test_there"), ("test_b", "test_there"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "cases"),
    [
        (("-k", "one"), {"test_a::test_one": "passed"}),
        (("-m", "not xen"), {"test_a::test_here": "passed"}),
        (("test_a.py::test_two",), {"test_a::test_two": "failure"}),
        (("-x",), {"test_a::test_here": "passed", "test_a::test_one": "passed",
                   "test_a::test_two": "failure"}),
        (("--maxfail=2", "-q"), {"test_a::test_here": "passed", "test_a::test_one": "passed",
                                 "test_a::test_two": "failure", "test_a::test_three": "failure"}),
        (("--deselect=test_a.py::test_two", "--maxfail=1"),
         {"test_a::test_here": "passed", "test_a::test_one": "passed",
          "test_a::test_three": "failure"}),
        (("--collect-only",), {}),
    ],
)  # fmt: skip
def test_what_is_chosen_runs(
    project: Project, words: tuple[str, ...], cases: dict[str, str]
) -> None:
    project.write(
        test_a="""
            import pytest
            xen = pytest.mark.xen

            @xen
            def test_one(): ...
            @xen
            def test_two(): assert False
            @xen
            def test_three(): assert False
            @xen
            def test_four(): ...
            def test_here(): ...
        """
    )
    result = project.pytest("--xen", *words)
    assert result.outcomes() == cases
    failed = "failure" in cases.values()
    assert result.status == (1 if failed else 0)
    assert bool(project.machines()) == any("here" not in name for name in cases)


def test_several_releases(project: Project) -> None:
    project.write(test_a="import pytest\n@pytest.mark.xen\n@pytest.mark.parametrize('a', [1])\n"
                         "def test_one(a): ...")  # fmt: skip
    result = project.pytest("--xen", "--xen-release", "bookworm,trixie", "--xen-release=trixie")
    assert project.machines() == ["bookworm", "trixie"]
    assert result.outcomes() == {
        "test_a::test_one[1-bookworm]": "passed", "test_a::test_one[1-trixie]": "passed"
    }  # fmt: skip
    assert "xen: 4.17 (bookworm), 4.20 (trixie), nested" in result.said
    assert "[100%]" in result.said


def test_a_failure_has_the_logs_of_its_own_time(project: Project) -> None:
    project.write(
        test_a="""
            import os, pathlib, pytest
            pytestmark = pytest.mark.xen
            machine = pathlib.Path(os.environ.get("STAND_IN_DIRECTORY", "."))

            def log(text):
                for name in ("console", "log/guest-web.log"):
                    with (machine / name).open("a") as file:
                        file.write(f"{name}: {text}\\n")

            def test_one():
                log("before")
            def test_two():
                log("within")
                assert False
            def test_three():
                log("after")
        """
    )
    said = project.pytest("--xen").said
    assert re.search(r"-+ \S*/log/guest-web.log -+\nlog/guest-web.log: within\n", said)
    assert re.search(r"-+ dom0's console, since its module began -+\nconsole: before\n", said)
    assert "web.log: before" not in said
    assert "web.log: after" not in said


DYING = """
    import os, pathlib, signal, time, pytest
    pytestmark = pytest.mark.xen
    machine = pathlib.Path(os.environ.get("STAND_IN_DIRECTORY", "."))

    def test_one(): ...

    def test_two():
        os.write(1, b"so far so good\\n")
        {how}

    def test_three(): ...
    def test_four(): assert False
"""
AFTER_DEATH = {
    "test_a::test_one": "passed", "test_a::test_two": "failure", "test_a::test_three": "passed",
    "test_a::test_four": "failure",
}  # fmt: skip


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("(machine / 'die').touch(); os._exit(255)",
         ["QEMU was killed by SIGKILL (a hint)", "  | (XEN) the last line"]),
        ("os.abort()", ["was killed by SIGABRT, before its end", "Fatal Python error: Aborted"]),
        ("os._exit(3)", ["pytest in dom0 ended with status 3, before its end"]),
        ("time.sleep(900)",
         ["nothing came from dom0 for 20 s", "Timeout (0:00:18)!", "in test_two"]),
    ],
)  # fmt: skip
def test_what_dies_or_hangs_costs_one_test(project: Project, how: str, told: list[str]) -> None:
    project.write(test_a=DYING.format(how=how))
    result = project.pytest("--xen", "--xen-timeout=20")
    assert result.status == 1
    assert result.outcomes() == AFTER_DEATH
    assert project.machines() == ["trixie"] * 2
    assert result.cases["test_a::test_two"].text.startswith("while this test ran: ")
    for words in told:
        assert words in result.said


def test_a_daemon_that_a_test_leaves_holds_nobody_up(project: Project) -> None:
    project.write(
        test_a="""
            import os, pytest

            @pytest.mark.xen
            def test_one():
                os.posix_spawn("/bin/sleep", ["sleep", "30"], os.environ)
        """
    )
    began = time.monotonic()
    assert project.pytest("--xen").status == 0
    assert time.monotonic() - began < 30


def test_a_module_that_dom0_cannot_collect(project: Project) -> None:
    project.write(
        test_a="""
            import os, pytest
            if "STAND_IN_DIRECTORY" in os.environ:
                import no_such_module
            @pytest.mark.xen
            def test_one(): ...
            @pytest.mark.xen
            def test_two(): ...
        """,
        test_b="import pytest\n@pytest.mark.xen\ndef test_one(): ...",
    )
    result = project.pytest("--xen")
    assert result.status == 1
    assert result.outcomes() == {
        "test_a::test_one": "error", "test_a::test_two": "error", "test_b::test_one": "passed"
    }  # fmt: skip
    assert "No module named 'no_such_module'" in result.cases["test_a::test_two"].text
    assert project.machines() == ["trixie"] * 2


def test_a_conftest_that_fails_in_dom0(project: Project) -> None:
    project.write(
        conftest=CONFTEST + "import os\nassert 'STAND_IN_DIRECTORY' not in os.environ, 'not here'",
        test_a="import pytest\n@pytest.mark.xen\ndef test_one(): ...",
    )
    result = project.pytest("--xen")
    assert result.status == 1
    assert result.outcomes() == {"test_a::test_one": "error"}
    assert "pytest in dom0 ended with status 4" in result.said
    assert "not here" in result.said


def test_a_test_that_dom0_does_not_have(project: Project) -> None:
    project.write(
        test_a="""
            import os, pytest
            @pytest.mark.xen
            @pytest.mark.parametrize("here", ["STAND_IN_DIRECTORY" in os.environ, 7])
            def test_one(here): ...
        """
    )
    result = project.pytest("--xen")
    assert result.outcomes() == {
        "test_a::test_one[False]": "error", "test_a::test_one[7]": "passed"
    }  # fmt: skip
    assert "collected here, and not in dom0" in result.said


def test_a_test_that_ends_the_run(project: Project) -> None:
    project.write(
        test_a="""
            import pytest
            pytestmark = pytest.mark.xen
            def test_one(): ...
            def test_two(): pytest.exit("enough of this")
            def test_three(): ...
        """
    )
    result = project.pytest("--xen")
    assert result.status == 2
    assert "enough of this" in result.said
    assert len(project.machines()) == 1


def test_an_internal_error_in_dom0(project: Project) -> None:
    project.write(
        conftest=CONFTEST
        + """
import os
def pytest_runtest_logstart(nodeid):
    if "two" in nodeid and "STAND_IN_DIRECTORY" in os.environ:
        raise OSError("a hook that fails")
""",
        test_a="""
            import pytest
            pytestmark = pytest.mark.xen
            def test_one(): ...
            def test_two(): ...
            def test_three(): ...
        """,
    )
    result = project.pytest("--xen")
    assert result.status == 1
    assert "an internal error of pytest" in result.said
    assert result.cases["test_a::test_one"].outcome == "passed"


def test_no_machine_is_told_once_in_full(project: Project) -> None:
    for name in ("test_a", "test_b"):
        project.write(**{name: "import pytest\n@pytest.mark.xen\ndef test_one(): ..."})
    result = project.pytest("--xen", env={"STAND_IN": "no-machine"})
    assert result.status == 1
    assert set(result.outcomes().values()) == {"error"}
    assert len(project.machines()) == 1
    first, second = result.cases.values()
    assert first.text.splitlines() == [
        "  | a line of a log", "xenvm: error: no disk space", "xenvm: hint: free some"
    ]  # fmt: skip
    assert second.text == "no Xen of trixie, as above: no disk space"


def test_ctrl_c_ends_the_machine(project: Project) -> None:
    project.write(
        test_a="""
            import os, pathlib, time, pytest
            @pytest.mark.xen
            def test_one():
                pathlib.Path(os.environ["STAND_IN_DIRECTORY"], "pid").write_text(str(os.getpid()))
                time.sleep(300)
        """
    )
    command = ["env", "--default-signal=INT", *project.command("--xen")]
    with subprocess.Popen(
        command, cwd=project.root, env=project.environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        path = project.root / ".machine/1/pid"
        wait_until(lambda: path.exists() and path.read_text() != "")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "KeyboardInterrupt" in said
    assert not Path(f"/proc/{path.read_text()}").exists()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_what_is_printed_past_capture_is_seen_with_s(project: Project) -> None:
    project.write(
        test_a="import pytest\n@pytest.mark.xen\ndef test_one(): print('straight through')"
    )
    assert "straight through" in project.pytest("--xen", "-s").said
    assert "straight through" not in project.pytest("--xen").said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--xen", "--xen-here"), "exclude each other"),
        (("--xen-here",), "--xen-here: no Xen here"),
        (("--xen", "--xen-release=sid"), "'sid' is none of trixie, bookworm"),
    ],
)
def test_wrong_usage(project: Project, words: tuple[str, ...], told: str) -> None:
    if words == ("--xen-here",) and Path("/dev/xen/evtchn").exists():
        words = ("--xen-here", "--xen")
        told = "exclude"
    result = project.pytest(*words)
    assert result.status == 4
    assert told in result.said


def test_what_cannot_be_carried_is_said_before_any_test_runs(project: Project) -> None:
    project.write(
        test_a="import pytest\n@pytest.mark.xen\ndef test_one(): ...\ndef test_here(): ..."
    )
    result = project.pytest("--xen", "-o", "xen_carry=cffi")
    assert result.status == 4
    assert "xen_carry: cffi has a compiled part" in result.said
    assert not result.outcomes()


def test_xdist_is_refused(project: Project) -> None:
    project.write(
        conftest=CONFTEST + "def pytest_addoption(parser):\n"
        "    parser.addoption('--dist', default='no')\n"
    )
    result = project.pytest("--xen", "--dist=load")
    assert result.status == 4
    assert "--xen does not go with pytest-xdist" in result.said


def test_help_teaches(project: Project) -> None:
    said = " ".join(project.pytest("--help").said.split())
    for words in ("needs a real Xen", "--xen-release=RELEASE", "xen_carry (args)", "pristine"):
        assert words in said.replace("need a", "needs a")
    assert "@pytest.mark.xen: needs a real Xen" in project.pytest("--markers").said


def test_the_plugin_costs_nobody_anything() -> None:
    code = (
        "import sys, pytest\n"
        "before = set(sys.modules)\n"
        "import xenpy.testing.plugin\n"
        "print(sorted(name for name in set(sys.modules) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    names = done.stdout.strip("[]\n").replace("'", "").split(", ")
    assert {name for name in names if name.startswith("xenpy")} == {
        "xenpy", "xenpy.testing", "xenpy.testing.plugin"
    }  # fmt: skip


def test_both_levels(project: Project) -> None:
    project.write(test_a="def test_one(ring_pair): assert ring_pair.__name__ == 'both'")
    result = project.pytest()
    assert result.outcomes() == {
        "test_a::test_one[fake]": "passed", "test_a::test_one[xen]": "skipped"
    }  # fmt: skip
