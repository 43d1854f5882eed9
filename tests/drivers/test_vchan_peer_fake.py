# SPDX-License-Identifier: MIT
"""The suite with libxenvchan over the fakes: the library is the real one, its Xen is ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conformance.fake_process import Door, compile_program
from conformance.vchan_arena import GUEST, Arena, fake_arena
from conformance.vchan_peer_suite import *  # noqa: F403 - the tests themselves
from conformance.vchan_peer_suite import SOURCE, Stage
from xenpy.testing.fake_xen import FakeXen
from xenpy.types import DOM0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(SOURCE, tmp_path_factory.mktemp("vchan") / "vchan_peer", "-lxenvchan")


@pytest.fixture
def stage(program: Path, tmp_path: Path) -> Stage:
    stage: Stage

    @asynccontextmanager
    async def arenas() -> AsyncIterator[Arena]:
        xen = FakeXen()
        with Door(xen, DOM0, tmp_path) as first, Door(xen, GUEST, tmp_path) as second:
            async with fake_arena(xen=xen) as arena:
                stage.fds = (first.pages_fd,)
                stage.environments = {
                    half.domid: {**door.environment, "XENSTORED_PATH": half.store.path}
                    for half, door in ((arena.server, first), (arena.client, second))
                }
                yield arena

    stage = Stage(arenas, program)
    return stage
