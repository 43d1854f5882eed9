# SPDX-License-Identifier: MIT
"""What a daemon's devices have done, for Prometheus: counters by blkback's names, over HTTP.

Needs the package prometheus_client, and only where somebody asks for metrics: the format, its
escapes and its content negotiation are that package's, which serves them in a thread of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from xenpy import __version__
from xenpy.lifecycle import DeviceLife
from xenpy.service import Service
from xenpy.types import XenbusState

__all__ = ["DEFAULT_ADDRESS", "MEANINGS", "parse_address", "start"]

DEFAULT_ADDRESS: Final = "127.0.0.1"
PATIENCE: Final = 5.0
"""Seconds for the event loop to say how its devices are."""
LABELS: Final = ("kind", "domid", "devid")
MEANINGS: Final[Mapping[str, str]] = {
    "rd_req": "Read requests",
    "wr_req": "Write requests",
    "f_req": "Flush and barrier requests",
    "ds_req": "Discard requests",
    "rd_sect": "Sectors of 512 bytes that were read",
    "wr_sect": "Sectors of 512 bytes that were written",
    "ds_sect": "Sectors of 512 bytes that were discarded",
    "requests": "Requests that were answered",
    "indirect": "Indirect requests among them",
    "batches": "Batches in which requests were taken from the ring",
    "wakeups": "Events that woke an engine",
    "notifications": "Events that were sent to the frontend",
    "refused": "Requests that made no sense, and were answered with an error",
    "errors": "Requests that were answered with an error, refused ones included",
    "flushes_failed": "Flushes that failed: writes are lost",
    "grants_mapped": "Grants that were mapped",
    "grants_unmapped": "Grants that were unmapped again",
    "grants_copied": "Segments that were copied by the hypervisor",
}
"""Of counters that xenpy's own drivers have; a driver may have any others."""


def parse_address(text: str) -> tuple[str, int]:
    """[ADDRESS:]PORT, where ADDRESS may be IPv6 in brackets.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):)?([0-9]{1,5})", text, re.ASCII)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise ValueError(f"metrics is {text!r}; give [ADDRESS:]PORT, such as 127.0.0.1:9123")
    return (found[1] or DEFAULT_ADDRESS).strip("[]"), int(found[2])


@dataclass(frozen=True, slots=True)
class _Row:
    """A device as it was."""

    labels: tuple[str, str, str]
    connected: bool
    draining: bool
    counters: Mapping[str, int]


class _Devices(Collector):
    """Asks the event loop, from the thread that serves a scrape."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._loop = loop

    def describe(self) -> Iterable[Metric]:
        # Nothing at the start: whoever registers a collector would call `collect` otherwise, in
        # the loop's own thread.
        return []

    def collect(self) -> Iterable[Metric]:
        asked = asyncio.run_coroutine_threadsafe(self._look(), self._loop)
        rows, unmaps = asked.result(PATIENCE)
        yield InfoMetricFamily("xenpy", "This daemon.", {"version": __version__})
        yield GaugeMetricFamily(
            "xenpy_deferred_unmaps", "Mappings that wait for a view to die.", unmaps
        )
        connected = GaugeMetricFamily(
            "xenpy_device_connected", "Whether both ends are connected.", labels=LABELS
        )
        draining = GaugeMetricFamily(
            "xenpy_device_draining", "Whether it waits for its store to let go.", labels=LABELS
        )
        counters: dict[str, CounterMetricFamily] = {}
        for row in rows:
            connected.add_metric(row.labels, row.connected)
            draining.add_metric(row.labels, row.draining)
            for name, count in row.counters.items():
                if name not in counters:
                    text = MEANINGS.get(name, f"The driver's counter {name}")
                    counters[name] = CounterMetricFamily(_metric(name), f"{text}.", labels=LABELS)
                counters[name].add_metric(row.labels, count)
        yield connected
        yield draining
        yield from counters.values()

    async def _look(self) -> tuple[list[_Row], int]:
        lives = self._service.devices.values()
        return [_row(life) for life in lives], self._service.deferred_unmaps


def _row(life: DeviceLife) -> _Row:
    context = life.context
    labels = context.kind, str(context.domid), str(context.devid)
    return _Row(labels, life.phase is XenbusState.CONNECTED, life.draining, dict(life.stats()))


def _metric(name: str) -> str:
    """A driver may call its counters what it likes."""
    return "xenpy_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


def start(service: Service, address: tuple[str, int]) -> None:
    """Serve http://ADDRESS:PORT/metrics until the process ends.  In the event loop.

    Raises:
        OSError: there is no such address here, or the port is somebody's.
    """
    registry = CollectorRegistry()
    registry.register(_Devices(service, asyncio.get_running_loop()))
    ProcessCollector(registry=registry)
    host, port = address
    start_http_server(port, addr=host, registry=registry)
