# SPDX-License-Identifier: MIT
"""The suite of the handles over a real Xen, and what only a real kernel can refuse."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from conformance.handles_env import HandlesEnvironment
from conformance.handles_suite import *  # noqa: F403 - the tests themselves
from conformance.xen_env import Loopback, nothing_left_in_the_hypervisor
from xenpy.errors import XenError, XenExistsError
from xenpy.evtchn import VIRQ_DOM_EXC, EventChannels
from xenpy.gnttab import GrantShare
from xenpy.types import DOM0

__all__ = ["nothing_left_in_the_hypervisor"]


@pytest.fixture
def env() -> HandlesEnvironment:
    return Loopback()


def test_no_more_is_shared_than_the_kernel_allows() -> None:
    """drivers/xen/gntalloc.c: its parameter `limit`, for all processes together."""
    limit = int(Path("/sys/module/xen_gntalloc/parameters/limit").read_text())
    with GrantShare() as share:
        with pytest.raises(XenError, match=f"count={limit + 1}") as caught:
            share.share(DOM0, limit + 1)
        assert caught.value.errno == errno.ENOSPC
        assert share.held == 0


def test_the_virq_of_dying_domains_belongs_to_xenstored() -> None:
    with (
        EventChannels() as channels,
        pytest.raises(XenExistsError, match=f"virq={VIRQ_DOM_EXC}"),
    ):
        channels.bind_virq(VIRQ_DOM_EXC)
