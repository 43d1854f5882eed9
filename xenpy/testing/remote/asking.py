# SPDX-License-Identifier: MIT
"""What the pytest here makes of its own settings, for the one in dom0."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import pytest

from xenpy.testing.remote.order import Order
from xenpy.testing.remote.project import Project
from xenpy.vm.errors import VmError

__all__ = ["options_of", "order_of", "project_of"]

NOT_PASSED = {
    # which tests run, and when it is enough: decided here
    "deselect", "failedfirst", "file_or_dir", "ignore", "ignore_glob", "keyword", "lf",
    "last_failed_no_failures", "markexpr", "max_warnings", "maxfail", "newfirst",
    "session_timeout", "stepwise", "stepwise_reset", "stepwise_skip",
    # files and directories of this machine
    "basetemp", "confcutdir", "inifilename", "log_file", "rootdir", "xmlpath",
    # needs a terminal, or prints to one
    "debug", "durations", "durations_min", "setupshow", "trace", "traceconfig", "usepdb",
    "usepdb_cls",
    # read before plugins are configured: these go as words, or not at all
    "assertmode", "capture", "disable_plugin_autoload", "importmode", "noconftest",
    "override_ini", "plugins", "pythonwarnings",
    # others may be known there that are not known here
    "strict_config", "xen", "xen_here",
}  # fmt: skip
TIMED_OUT = 0.9
"""Of the time-out: then dom0's pytest writes down where each thread is."""


def project_of(config: pytest.Config, items: Iterable[pytest.Item]) -> Project:
    """The project of a session.  Raises pytest.UsageError: it cannot be copied into dom0."""
    root = config.rootpath
    needed = {item.path for item in items}
    for plugin in config.pluginmanager.get_plugins():
        path = Path(str(getattr(plugin, "__file__", "") or "/"))
        if path.name == "conftest.py" and path.is_relative_to(root):
            needed.add(path)
    if config.inipath is not None:
        needed.add(config.inipath)
    for path in sorted(needed):
        if not path.is_relative_to(root):
            raise pytest.UsageError(
                f"--xen: {path} is not below {root}, the directory that is copied into dom0; "
                "--rootdir chooses another"
            )
    try:
        return Project.scan(root, needed, config.getini("xen_carry"))
    except VmError as error:
        raise pytest.UsageError(f"--xen: {error} ({error.hint})") from error


def order_of(config: pytest.Config, project: Project, items: Sequence[pytest.Item]) -> Order:
    """What to ask of dom0's pytest, for tests of one module."""
    here = config.invocation_params.dir
    capture: str = config.option.capture
    return Order(
        directory=os.fspath(here if here.is_relative_to(project.root) else project.root),
        path=project.module_path,
        arguments=[*_words(config), os.fspath(items[0].path)],
        options=options_of(config),
        nodeids=[item.nodeid for item in items],
        live=capture == "no",
    )


def _words(config: pytest.Config) -> list[str]:
    option = config.option
    overrides: list[str] = option.override_ini or []
    filters: list[str] = option.pythonwarnings or []
    plugins: list[str] = option.plugins or []
    kept = [word for word in overrides if not word.startswith(("addopts", "strict_config"))]
    dump = f"faulthandler_timeout={TIMED_OUT * option.xen_timeout:.0f}"
    return [
        "-p", "xenpy.testing.plugin", "-p", "no:cacheprovider", "--xen-here",
        f"--rootdir={config.rootpath}",
        *(["-c", os.fspath(config.inipath)] if config.inipath is not None else []),
        # Those of the project's file have become options here; dom0 may not know all of them.
        "-o", "addopts=", "-o", dump,
        *(f"-o{word}" for word in kept),
        *(word for name in plugins for word in ("-p", name)),
        *(f"-W{text}" for text in filters),
        "-Wignore::pytest.PytestConfigWarning",
        f"--capture={option.capture}", f"--import-mode={option.importmode}",
    ]  # fmt: skip


def options_of(config: pytest.Config) -> dict[str, object]:
    """The values of options, a plugin's and the project's own too, as far as JSON has them.

    None is what an option is that was not given, and what pytest here makes of that may not be
    what the older one there does.
    """
    options: dict[str, object] = vars(config.option)
    return {
        name: value for name, value in options.items()
        if name not in NOT_PASSED and _is_plain(value)
    }  # fmt: skip


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(each) for each in cast(list[object], value))
    return isinstance(value, (bool, int, float, str))
