# SPDX-License-Identifier: MIT
"""The console suite on a real Xen, domain 0 being its own guest."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from conformance.console_suite import *  # noqa: F403 - the tests themselves
from conformance.console_suite import Place
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.backend import NativeXen
from xenpy.frontend import NativeFrontend
from xenpy.types import DOM0
from xenpy.xenstore import Store

__all__ = ["nothing_left_in_the_hypervisor"]


class XenPlace:
    """Loopback."""

    domid = DOM0
    back = NativeXen()
    front = NativeFrontend()

    @asynccontextmanager
    async def store(self) -> AsyncGenerator[Store]:
        async with Store.open() as store:
            yield store


@pytest.fixture
def place() -> Place:
    return XenPlace()
