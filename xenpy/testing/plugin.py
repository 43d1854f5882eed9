# SPDX-License-Identifier: MIT
"""A plugin of pytest: tests marked `xen` run in the dom0 of a real Xen, under `pytest --xen`.

It is loaded wherever xenpy is installed, so it imports nothing but pytest until it is needed.
Where xenpy is not installed but in a checkout, a project's conftest.py loads it:

    pytest_plugins = ["xenpy.testing.plugin"]
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import pytest

if TYPE_CHECKING:
    from xenpy.testing.remote.order import Dom0Maker
    from xenpy.testing.remote.project import Project
    from xenpy.testing.remote.session import XenSession
    from xenpy.testing.ring import Pair

__all__ = ["XenHooks", "ring_pair"]

MARK = "xen"
DEFAULT_TIMEOUT = 300.0
EVENT_CHANNELS = Path("/dev/xen/evtchn")
HELP = """\
Tests marked `@pytest.mark.xen` need a real Xen.  With --xen each module with such tests gets a
pristine one, nested in a VM on this machine: Debian packages, an image and a snapshot are made when
they are first needed (some minutes), and found again later (some seconds).  The project is copied
into dom0 and its tests run there, as root; reports, failures with dom0's and the guests' logs, and
the exit status are as if they had run here"""


class XenHooks:
    """What a project's conftest.py may answer."""

    @pytest.hookspec(firstresult=True)
    def pytest_xen_dom0(self, config: pytest.Config, project: Project) -> Dom0Maker | None:
        """Where tests marked `xen` run: the nested VM, unless a plugin has another Xen, such as
        a machine in the laboratory.  See xenpy.testing.remote.order for what it has to do."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(XenHooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xen", HELP)
    group.addoption(
        "--xen", action="store_true",
        help="run the tests marked `xen`, after the others, each module in a fresh nested Xen",
    )  # fmt: skip
    group.addoption(
        "--xen-here",
        action="store_true",
        help="run them in this very system, which must be a dom0 (and be of no value: tests of "
        "drivers can make it unusable)",
    )
    group.addoption(
        "--xen-release", action="append", default=[], metavar="RELEASE",
        help="Debian's release that the nested Xen is of: trixie = Xen 4.20 (default), bookworm = "
        "Xen 4.17; several, by commas or by repeating it: each test on each",
    )  # fmt: skip
    group.addoption(
        "--xen-timeout", type=float, default=DEFAULT_TIMEOUT, metavar="SECONDS",
        help="end a machine from whose tests nothing has come for so long; that fails the test "
        f"that runs, and the others go on in another machine ({DEFAULT_TIMEOUT:.0f})",
    )  # fmt: skip
    group.addoption(
        "--xen-icount", action="store_true",
        help="with a clock that counts instructions: slow, and races repeat",
    )  # fmt: skip
    parser.addini(
        "xen_carry", type="args", default=[],
        help="installed distributions, pure Python, that the tests need in dom0 beside the project",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{MARK}: needs a real Xen; runs in the dom0 of one under `pytest --xen`"
    )
    option = config.option
    if option.xen and option.xen_here:
        raise pytest.UsageError("--xen and --xen-here exclude each other")
    if option.xen_here and not EVENT_CHANNELS.exists():
        raise pytest.UsageError(f"--xen-here: no Xen here (no {EVENT_CHANNELS}); try --xen")
    if option.xen:
        _releases(config)
        if getattr(option, "dist", "no") != "no" or getattr(option, "tx", None):
            raise pytest.UsageError(
                "--xen does not go with pytest-xdist: machines run one after another; without -n, "
                "please (`-m 'not xen'` with -n, then `-m xen --xen`, is as fast)"
            )


def _releases(config: pytest.Config) -> list[str]:
    """Those asked for.  Raises pytest.UsageError for one that there is not."""
    from xenpy.vm.releases import DEFAULT, RELEASES

    words: list[str] = config.option.xen_release
    asked = [name for word in words for name in word.split(",") if name] or [DEFAULT]
    for name in asked:
        if name not in RELEASES:
            raise pytest.UsageError(f"--xen-release: {name!r} is none of {', '.join(RELEASES)}")
    return list(dict.fromkeys(asked))


def pytest_report_header(config: pytest.Config) -> str | None:
    if not config.option.xen:
        return None
    from xenpy.vm.releases import RELEASES

    named = [f"{RELEASES[name].xen} ({name})" for name in _releases(config)]
    return f"xen: {', '.join(named)}, nested, a fresh one for each module"


def _needs_xen(item: pytest.Item) -> bool:
    return item.get_closest_marker(MARK) is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.xen or config.option.xen_here:
        return
    here = ", or here `pytest --xen-here`" if EVENT_CHANNELS.exists() else ""
    skip = pytest.mark.skip(reason=f"needs Xen: run `pytest --xen`{here}")
    for item in items:
        if _needs_xen(item):
            item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """pytest's own loop, and then ours.

    Ours come last, so that whoever has a mistake that shows without Xen sees it first, and so
    that no fixture of a module is up here while its tests run there.
    """
    option = session.config.option
    errors = session.testsfailed and not option.continue_on_collection_errors
    if not option.xen or option.collectonly or option.setupplan or errors:
        return None
    ours = [item for item in session.items if _needs_xen(item)]
    if not ours:
        return None
    # Before the others run, not after: this finds what is wrong with the project.
    in_dom0 = _xen_session(session, ours)
    others = [item for item in session.items if not _needs_xen(item)]
    for item, following in zip_longest(others, others[1:]):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
    in_dom0.run(ours, _releases(session.config))
    return True


def _xen_session(session: pytest.Session, items: list[pytest.Item]) -> XenSession:
    from xenpy.testing.remote.asking import order_of, project_of
    from xenpy.testing.remote.session import XenSession

    config = session.config
    project = project_of(config, items)
    return XenSession(
        session,
        config.hook.pytest_xen_dom0(config=config, project=project),
        lambda some: order_of(config, project, some),
        patience=config.option.xen_timeout,
        visible=lambda: _visible(config),
    )


@pytest.hookimpl(trylast=True)
def pytest_xen_dom0(config: pytest.Config, project: Project) -> Dom0Maker:
    from xenpy.testing.remote.machine import NestedXen

    return NestedXen(project, icount=config.option.xen_icount)


class _Terminal(Protocol):
    def ensure_newline(self) -> None: ...


class _Capture(Protocol):
    def global_and_fixture_disabled(self) -> AbstractContextManager[None]: ...


@contextmanager
def _visible(config: pytest.Config) -> Generator[None, None, None]:
    """What is printed meanwhile is no test's, and the user wants to see it now."""
    plugins = config.pluginmanager
    terminal = cast("_Terminal | None", plugins.getplugin("terminalreporter"))
    capture = cast("_Capture | None", plugins.getplugin("capturemanager"))
    if terminal is not None:
        terminal.ensure_newline()
    if capture is None:
        yield
        return
    with capture.global_and_fixture_disabled():
        yield


@pytest.fixture(params=["fake", pytest.param("xen", marks=pytest.mark.xen)])
def ring_pair(request: pytest.FixtureRequest) -> Pair:
    """For tests of both halves of a protocol, twice: over the fakes, and on Xen.

    What `xenpy.testing.ring` calls `both` and `loopback`; tests with the second are marked `xen`.
    """
    from xenpy.testing.ring import both, loopback

    return both if request.param == "fake" else loopback
