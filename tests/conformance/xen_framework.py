# SPDX-License-Identifier: MIT
"""A `FrameworkEnvironment` over a real Xen and dom0's own xenstored."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from conformance.xen_env import Loopback
from xenpy.types import DomId

__all__ = ["XenFramework", "env", "stranger"]

STRANGER = "stranger"


class XenFramework(Loopback):
    """Frontends in dom0, which cannot die alone; the stranger is a domain that exists,
    since xenstored takes no other as the owner of a node."""

    def __init__(self, stranger: DomId) -> None:
        self.stranger_domid = stranger

    def store_path(self) -> str | None:
        return None

    def sibling(self) -> XenFramework:
        return self

    def kill_front_domain(self) -> bool:
        return False


@pytest.fixture(scope="module")
def stranger() -> Iterator[DomId]:
    """A domain that never runs."""
    command = ["xenvm-guest", "create", STRANGER, "--paused", "--no-network", "--memory", "128"]
    subprocess.run(command, check=True)
    found = subprocess.run(["xl", "domid", STRANGER], check=True, capture_output=True, text=True)
    yield DomId(int(found.stdout))
    subprocess.run(["xl", "destroy", STRANGER], check=True)


@pytest.fixture(scope="module")
def env(stranger: DomId) -> XenFramework:
    return XenFramework(stranger)
