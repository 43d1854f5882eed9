# SPDX-License-Identifier: MIT
"""A device looks again at what it serves, because the operator says that it has changed.

`attach.refresh` writes the question into the backend's directory; this answers it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from xenpy.backend import Device, DeviceContext, DeviceError, Keys
from xenpy.device_nodes import REFRESH, REFRESH_ERROR, REFRESHED, DeviceNodes, error_text
from xenpy.types import XenbusState

__all__ = ["Refresher"]


class Refresher:
    """Answers each question once.

    Args:
        bound: seconds that the device has for it.
    """

    def __init__(
        self, nodes: DeviceNodes, context: DeviceContext, device: Device, bound: float
    ) -> None:
        self._nodes = nodes
        self._context = context
        self._device = device
        self._bound = bound
        self._answered: str | None = None

    async def look(self, phase: XenbusState) -> None:
        """If somebody asks for it: look again at what is served, and tell the frontend.

        Args:
            phase: the state that the device is in.

        Raises:
            NodesGoneError: see `DeviceNodes.tell_again`.
        """
        asked = await self._nodes.get(REFRESH)
        if asked in (None, self._answered) or phase is XenbusState.INITIALISING:
            return
        self._answered = asked
        before = self._context.backend_keys
        await self._take_settings(asked.split()[1:])
        keys, reason = await self._ask()
        if reason:
            self._context.backend_keys = before
            self._context.log.warning("cannot look again: %s", reason)
        await self._nodes.tell_again(phase, {**keys, REFRESHED: asked, REFRESH_ERROR: reason})

    async def _ask(self) -> tuple[Keys, str]:
        """The keys that are others now, or why there are none."""
        try:
            async with asyncio.timeout(self._bound):
                return await self._device.refresh(), ""
        except TimeoutError:
            return {}, "the store does not answer"
        except (DeviceError, OSError) as error:
            return {}, error_text(error)
        except Exception as error:
            text = error_text(error)
            self._context.log.exception("the driver failed: %s", text)
            return {}, text

    async def _take_settings(self, names: Sequence[str]) -> None:
        keys = dict(self._context.backend_keys)
        for name in names:
            keys.pop(name, None)
            if (value := await self._nodes.get(name)) is not None:
                keys[name] = value
        self._context.backend_keys = keys
