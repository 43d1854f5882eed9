# SPDX-License-Identifier: MIT
"""What a protocol of your own looks like from outside: `xenpy protocol`.

    print(markdown(page_of(ECHO)))

For whoever writes the other half, in C, or in a kernel.  Everything is read from where the
drivers have it: layouts from `wire` and `ring`, the handshake from the tables of `xenbus`.
Sans-IO; `protocol_text` has `markdown`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from xenpy.ring_keys import MAX_QUEUES, MAX_RING_PAGE_ORDER, NUM_QUEUES
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol
from xenpy.types import XenbusState as S
from xenpy.wire import CAbi, Record, fields_of
from xenpy.xenbus import (
    BACKEND_TABLE,
    FRONTEND_TABLE,
    BackendStep,
    FrontendStep,
    backend_step,
    frontend_step,
)

__all__ = ["Handshake", "Key", "Layout", "ProtocolPage", "RecordPage", "camel", "page_of"]


@dataclass(frozen=True)
class Layout:
    """A record for one ABI, in bytes.

    Attributes:
        size: sizeof, padding included.
        offsets: of each field.
        padding: (offset, length) of what is no field.
    """

    size: int
    offsets: Mapping[str, int]
    padding: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class RecordPage:
    """A request or a response.

    Attributes:
        name: of the class.
        fields: name -> u8, i8 ... i64, in the order of memory.
        layouts: by ABI, as the key `protocol` names it.
    """

    name: str
    fields: Mapping[str, str]
    layouts: Mapping[str, Layout]


@dataclass(frozen=True)
class Key:
    """A key in XenStore: its name, who writes it, and what it is."""

    name: str
    by: str
    value: str


@dataclass(frozen=True)
class Handshake:
    """One side's: our state -> the other's -> the step, without those that wait.

    Attributes:
        steps: what each step is, in words.
    """

    table: Mapping[str, Mapping[str, str]]
    steps: Mapping[str, str]


@dataclass(frozen=True)
class ProtocolPage:
    """Everything that the two halves must agree in.

    Attributes:
        name: the kind, in XenStore.
        native: the ABI of the process that made the page: what a backend here takes a frontend
            without the key `protocol` for.
        slot_sizes, entries: bytes of a slot, and slots in the page, by ABI.
        frontend_path, backend_path: where the keys lie.
        connecting, closing: (backend, frontend) states, one change at a time, with what is done.
    """

    name: str
    native: str
    request: RecordPage
    response: RecordPage
    slot_sizes: Mapping[str, int]
    entries: Mapping[str, int]
    frontend_path: str
    frontend_keys: Sequence[Key]
    backend_path: str
    backend_keys: Sequence[Key]
    connecting: Sequence[tuple[str, str, str]]
    closing: Sequence[tuple[str, str, str]]
    backend: Handshake
    frontend: Handshake

    def json(self) -> dict[str, object]:
        """The page as objects of JSON, named as the attributes are."""
        return asdict(self)


def page_of(
    protocol: RingProtocol[RequestT, ResponseT], features: Mapping[str, str | int] | None = None
) -> ProtocolPage:
    """Describe a protocol.

    Args:
        features: keys that the backend publishes before a frontend connects.
    """
    layouts = {abi.protocol: protocol.codec(abi).layout for abi in CAbi}
    return ProtocolPage(
        name=protocol.name,
        native=CAbi.native().protocol,
        request=_record(protocol.request),
        response=_record(protocol.response),
        slot_sizes={abi: it.slot_size for abi, it in layouts.items()},
        entries={abi: it.entries(1) for abi, it in layouts.items()},
        frontend_path=f"/local/domain/DOMID/device/{protocol.name}/DEVID",
        frontend_keys=_frontend_keys(
            protocol.name, protocol.max_ring_page_order, protocol.max_rings
        ),
        backend_path=f"/local/domain/BACKEND/backend/{protocol.name}/DOMID/DEVID",
        backend_keys=_backend_keys(
            protocol.name,
            {
                MAX_RING_PAGE_ORDER: protocol.max_ring_page_order,
                MAX_QUEUES: protocol.max_rings,
                **(features or {}),
            },
        ),
        connecting=_connecting(),
        closing=_closing(),
        backend=_handshake(BACKEND_TABLE, BackendStep),
        frontend=_handshake(FRONTEND_TABLE, FrontendStep),
    )


def width_of(code: str) -> tuple[str, int]:
    """A code of the struct module as `wire` calls it, and its bytes: "Q" is u64, 8."""
    size = struct.calcsize(f"<{code}")
    return f"{'i' if code.islower() else 'u'}{8 * size}", size


def camel(state: S) -> str:
    """As io/xenbus.h spells it: InitWait."""
    return "".join(word.capitalize() for word in state.name.split("_"))


def _record(record: type[tuple[int, ...]]) -> RecordPage:
    fields = fields_of(record)
    return RecordPage(
        record.__name__,
        {name: width_of(code)[0] for name, code in fields.items()},
        {abi.protocol: _layout(Record(abi, fields), fields) for abi in CAbi},
    )


def _layout(record: Record, fields: Mapping[str, str]) -> Layout:
    padding: list[tuple[int, int]] = []
    end = 0
    starts = [(record.offsets[name], width_of(code)[1]) for name, code in fields.items()]
    for start, length in [*starts, (record.size, 0)]:
        if start > end:
            padding.append((end, start - end))
        end = start + length
    return Layout(record.size, dict(record.offsets), padding)


def _frontend_keys(name: str, max_ring_page_order: int, max_rings: int) -> Sequence[Key]:
    pages = (
        Key("ring-page-order", "frontend", f"0 to {max_ring_page_order}: of the ring's pages"),
        Key("ring-ref0 ...", "frontend", "instead of ring-ref, if ring-page-order is not 0"),
    )
    queues = (
        Key(NUM_QUEUES, "frontend", f"1 to {max_rings}: rings of the device"),
        Key("queue-N/...", "frontend", "of several rings, each has its ring-ref and event-channel"),
    )
    return (
        Key("backend", "toolstack", f"/local/domain/BACKEND/backend/{name}/DOMID/DEVID"),
        Key("backend-id", "toolstack", "the backend's domid"),
        Key("state", "toolstack, frontend", "1, then the frontend's state"),
        Key("ring-ref", "frontend", "the grant reference of the ring's page, for writing"),
        *(pages if max_ring_page_order else ()),
        Key("event-channel", "frontend", "an unbound port for the backend's domain"),
        *(queues if max_rings > 1 else ()),
        Key("protocol", "frontend", " or ".join(abi.protocol for abi in CAbi)),
    )


def _backend_keys(name: str, features: Mapping[str, str | int]) -> Sequence[Key]:
    return (
        Key("frontend", "toolstack", f"/local/domain/DOMID/device/{name}/DEVID"),
        Key("frontend-id", "toolstack", "the frontend's domid"),
        Key("online", "toolstack", "1, or 0 once the device is to go"),
        Key("state", "toolstack, backend", "1, then the backend's state"),
        *(Key(key, "backend", str(value)) for key, value in features.items()),
        Key("hotplug-status", "backend", "connected, or error"),
    )


def _handshake(
    table: Mapping[tuple[S, S], BackendStep | FrontendStep],
    steps: Iterable[BackendStep | FrontendStep],
) -> Handshake:
    found: dict[str, dict[str, str]] = {}
    for (ours, theirs), step in table.items():
        if step.name != "WAIT":
            found.setdefault(camel(ours), {})[camel(theirs)] = step.name
    used = {name for row in found.values() for name in row.values()}
    return Handshake(found, {step.name: step.value for step in steps if step.name in used})


LEADS_TO: Final[Mapping[BackendStep | FrontendStep, S]] = {
    BackendStep.PREPARE: S.INIT_WAIT,
    BackendStep.CONNECT: S.CONNECTED,
    BackendStep.FOLLOW_CLOSING: S.CLOSING,
    BackendStep.DISCONNECT: S.CLOSED,
    FrontendStep.PUBLISH: S.INITIALISED,
    FrontendStep.CONNECT: S.CONNECTED,
    FrontendStep.CLOSE: S.CLOSED,
}
"""The state after each step of a device that is made, and closed, once."""


def _connecting() -> Sequence[tuple[str, str, str]]:
    """A new device, until neither side has anything to do."""
    return _walk(S.INITIALISING, S.INITIALISING, online=True)


def _closing() -> Sequence[tuple[str, str, str]]:
    """A toolstack asks for a close (`online` = 0, the backend's `state` = 5)."""
    return _walk(S.CONNECTED, S.CONNECTED, online=False)


def _walk(back: S, front: S, *, online: bool) -> Sequence[tuple[str, str, str]]:
    """Both tables, asked in turn: what is seen of two drivers that keep the rules."""
    seen = [(camel(back), camel(front), "")]
    while True:
        step: BackendStep | FrontendStep = backend_step(back, back, front, online=online)
        if step in LEADS_TO:
            back = LEADS_TO[step]
        else:
            step = frontend_step(front, back)
            if step not in LEADS_TO:
                return seen
            front = LEADS_TO[step]
        side = "backend" if isinstance(step, BackendStep) else "frontend"
        seen.append((camel(back), camel(front), f"{side}: {step.value}"))
