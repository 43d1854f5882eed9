# SPDX-License-Identifier: MIT
"""Puts each fault of the table into a copy of xenpy and sees the named test fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from table import FAULTS, ROOT, Fault

pytestmark = pytest.mark.long

NEEDED = ("pyproject.toml", "xenpy", "drivers", "docs", "tests")
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", ".hypothesis", "vm", "xen", "lint", "faults", "_build"
)
LIMIT = 240.0
"""Seconds for one killer, several times what the slowest needs on a busy machine."""
SLOWER = 4
"""What hangs is waited for so many times as long as the killer takes here without a fault."""
RACE_TRIES = 5
AT_A_TIME = 4
BUILD = "from xenpy._ffi.build import block_engine as engine, stable; {}().compile(tmpdir='.')"


@dataclass(frozen=True)
class Result:
    """What became of one test.

    Attributes:
        outcome: "passed", "failed", "error" (not in the test itself: a fixture, an import) or
            "skipped".
        text: what pytest says about it.
        seconds: how long it took.
    """

    outcome: str
    text: str
    seconds: float


@dataclass(frozen=True)
class Run:
    """One run of pytest.  `status` is None if it was ended after its time."""

    status: int | None
    results: Mapping[str, Result]
    output: str


def copy(top: Path) -> Path:
    """What the killers need of the checkout, its built extensions included."""
    top.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, top / name, symlinks=True, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, top / name)
    return top


def run(top: Path, tests: list[str], limit: float) -> Run:
    """Run tests in a copy, and end them with all their children when the time is over."""
    junit = top / "junit.xml"
    command = [
        sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "-o", "junit_family=xunit1", f"--junitxml={junit}", *tests,
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=top, env=environment(top), stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return Run(None, {}, output)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Run(process.returncode, read(junit) if junit.exists() else {}, output)


def environment(top: Path) -> dict[str, str]:
    # A skipped killer is no killer.
    return {**os.environ, "PYTHONPATH": os.fspath(top), "XENPY_REQUIRE_XEN": "1"}


def read(junit: Path) -> dict[str, Result]:
    """Results by node id."""
    results: dict[str, Result] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        file = (case.get("classname") or "").replace(".", "/") + ".py"
        told = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = {"failure": "failed"}.get(told[0].tag, told[0].tag) if told else "passed"
        text = "\n".join(f"{child.get('message')}\n{child.text}" for child in told)
        name = f"{file}::{case.get('name')}"
        if name in results and results[name].outcome == "failed":
            # After the test its fixtures found something amiss as well.
            continue
        results[name] = Result(outcome, text, float(case.get("time") or 0.0))
    return results


def seed(top: Path, fault: Fault) -> None:
    """Put the fault in; build the C part again if it is in there.  Warnings are errors."""
    path = top / fault.file
    text = path.read_text()
    assert text.count(fault.old) == 1, "the table does not fit the source any more"
    path.write_text(text.replace(fault.old, fault.new))
    if path.suffix not in (".c", ".h"):
        return
    part = "engine" if path.parent.name == "engine" else "stable"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD.format(part)], cwd=top, text=True, check=False,
        env={**environment(top), "XENPY_WERROR": "1"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"it does not compile, so nothing is shown:\n{done.stdout}"


def wanted(request: pytest.FixtureRequest) -> list[Fault]:
    """The faults that this run of pytest is about."""
    return [
        item.callspec.params["fault"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "unchanged" in item.fixturenames
    ]


@pytest.fixture(scope="session")
def unchanged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Result]:
    """Every killer that is wanted, once, without a fault."""
    killers = {fault.killer for fault in wanted(request)}
    top = copy(tmp_path_factory.mktemp("unchanged") / "xenpy")
    done = run(top, sorted(killers), LIMIT * len(killers))
    assert done.results, done.output
    return done.results


def patience(fault: Fault, good: Result | None) -> float:
    """Seconds for the killer of a fault."""
    if fault.hangs is None or good is None:
        return LIMIT
    return max(fault.hangs, SLOWER * good.seconds)


def with_fault(fault: Fault, top: Path, limit: float) -> Run:
    seed(copy(top), fault)
    # A race need not show each time.
    for _ in range(RACE_TRIES if fault.alone else 1):
        done = run(top, [fault.killer], limit)
        if done.status != pytest.ExitCode.OK:
            break
    shutil.rmtree(top)
    return done


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest,
    unchanged: Mapping[str, Result],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mapping[str, Future[Run]]]:
    """Every killer with its fault.  Most of them wait for what does not come: several at a time."""
    directory = tmp_path_factory.mktemp("faults")
    alone = all(fault.alone for fault in wanted(request))
    pool = ThreadPoolExecutor(1 if alone else AT_A_TIME)
    yield {
        fault.name: pool.submit(
            with_fault, fault, directory / str(number), patience(fault, unchanged.get(fault.killer))
        )
        for number, fault in enumerate(wanted(request))
    }
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=[pytest.mark.alone] if fault.alone else [])
        for fault in FAULTS
    ],
)
@pytest.mark.timeout(3600)
def test_killed(
    fault: Fault, unchanged: Mapping[str, Result], runs: Mapping[str, Future[Run]]
) -> None:
    good = unchanged.get(fault.killer)
    assert good is not None, f"no such test: {fault.killer}"
    assert good.outcome == "passed", good.text
    done = runs[fault.name].result()
    if done.status is None:
        assert fault.hangs is not None, f"hangs, which this fault is not to do:\n{done.output}"
        return
    assert done.status == pytest.ExitCode.TESTS_FAILED, done.output
    assert {name: result.outcome for name, result in done.results.items()} == {
        fault.killer: "failed"
    }, done.output
    assert "Timeout >" not in done.results[fault.killer].text, done.output
