# SPDX-License-Identifier: MIT
"""A service with its socket, as `xenpy serve` and `xenpy run` have it, in this very loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from xenpy.control import Control
from xenpy.service import Service

__all__ = ["shown"]


@asynccontextmanager
async def shown(service: Service, driver: str, rundir: Path) -> AsyncGenerator[None]:
    """Serve, and show what is served to whoever asks in `rundir`, from when it is ready."""
    tasks = [
        asyncio.create_task(service.run()),
        asyncio.create_task(Control(service, driver, rundir).run()),
    ]
    try:
        await service.ready.wait()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
