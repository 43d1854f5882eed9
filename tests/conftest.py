# SPDX-License-Identifier: MIT
"""Settings for every test: deterministic hypothesis, and no silent skip where Xen is required."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("deterministic")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Gone after the test: hundreds of disk images would fill dom0's memory."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, object, None]:
    """Under XENPY_REQUIRE_XEN=1 a skipped test is a failure: CI must run, not skip."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    if os.environ.get("XENPY_REQUIRE_XEN") == "1" and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped although XENPY_REQUIRE_XEN=1: {report.longrepr}"
