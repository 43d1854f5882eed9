# SPDX-License-Identifier: MIT
"""The framework attacked: one suite for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `env`, a
`FrameworkEnvironment`.  The ids (E1, X2 ...) are those of the project's hostile-peer
checklist.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE, Blkfront, eventually, keys_of
from conformance.framework_front import (
    HOT,
    IMAGE_BYTES,
    FrameworkEnvironment,
    Guest,
    Host,
    a_witness,
    busy,
    make_image,
    resident,
    seconds,
)
from xenpy.attach import Endpoints, refresh
from xenpy.backend import Keys
from xenpy.drivers.block.back import BlockBackend
from xenpy.drivers.block.protocol import OP_READ, RSP_ERROR
from xenpy.runtime import in_thread
from xenpy.types import PAGE_SIZE

LONG = [pytest.mark.long, pytest.mark.timeout(3600)]
"""A thousand cycles took more than 300 s in an emulated machine."""


@pytest.fixture(scope="module")
def host(env: FrameworkEnvironment) -> Iterator[Host]:
    """One daemon for all cases: what one does to it, the next would notice."""
    host = Host(env)
    yield host
    host.close()


@pytest.fixture(scope="module")
def witness(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with a_witness(host, tmp_path_factory.mktemp("witness")) as witness:
        yield witness


@pytest.fixture(autouse=True)
def nothing_left(host: Host, witness: Guest) -> Iterator[None]:
    """Whatever happens in a case, it is over once the service has seen it, nothing is held
    then, and the witness has not had one failed request."""
    before = host.env.census()
    yield
    eventually(lambda: host.env.census() == before)
    witness.check(2)
    assert witness.error() is None


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


@pytest.fixture
def guest(host: Host, nothing_left: None, image: Path) -> Iterator[Guest]:
    guest = Guest(host, image, HOT)
    yield guest
    guest.remove()
    assert host.get(guest.back) is None


# ------------------------------------------------------------------ it works


def test_a_life_from_make_to_remove(guest: Guest) -> None:
    guest.connect()
    guest.check(1)
    assert guest.image.read_bytes() != bytes(IMAGE_BYTES)
    guest.shut()


def test_a_frontend_that_comes_back_is_served_again(guest: Guest) -> None:
    for turn in range(3):
        guest.connect()
        guest.check(turn)
        guest.shut()
        guest.drop()
        guest.write("state", "1")


def test_a_frontend_that_starts_over_while_it_is_being_connected(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend shows InitWait all the time, so that the frontend need not wait for it."""
    connect = BlockBackend.connect
    begun, over = threading.Event(), threading.Event()

    async def slow(self: BlockBackend, frontend: Mapping[str, str]) -> Keys:
        keys = await connect(self, frontend)
        if not begun.is_set():
            begun.set()
            await in_thread(lambda: over.wait(PATIENCE), "slow")
        return keys

    monkeypatch.setattr(BlockBackend, "connect", slow)
    first = guest.offer()
    assert begun.wait(PATIENCE)
    guest.write("state", "6")
    guest.write("state", "1")
    guest.offer()
    over.set()
    guest.wait("4")
    guest.check(1)
    first.close()


def test_two_devices_are_told_apart(guest: Guest, witness: Guest) -> None:
    guest.connect()
    for turn in range(5):
        guest.check(turn)
        witness.check(turn + 4)
    assert guest.image.read_bytes() != witness.image.read_bytes()


def test_a_frontend_with_two_queues_has_a_directory_for_each(guest: Guest) -> None:
    ring, other = guest.share(), Blkfront(guest.env, data_pages=4)
    guest.publish(keys_of([ring, other]))
    guest.wait("4")
    guest.write("state", "4")
    guest.check(1)
    assert other.read(8, 4) == ring.read(8, 4)
    guest.shut()
    other.close()


def test_a_disk_whose_image_has_grown_is_larger_once_the_operator_says_so(guest: Guest) -> None:
    ring = guest.connect()
    sector = IMAGE_BYTES // 512
    os.truncate(guest.image, IMAGE_BYTES + PAGE_SIZE)
    assert ring.status(OP_READ, sector, ring.whole_pages(1)) == RSP_ERROR
    ends = Endpoints(guest.front_path, guest.back)
    guest.host.run(refresh(guest.host.tools, ends, timeout=PATIENCE))
    assert guest.host.get(f"{guest.back}/sectors") == str(sector + 8)
    ring.write(sector, b"x" * PAGE_SIZE)
    assert guest.image.read_bytes()[IMAGE_BYTES:] == b"x" * PAGE_SIZE
    assert guest.state() == "4"
    guest.shut()


# ------------------------------------------------------------------ event channels


def storm(ring: Blkfront, length: float) -> int:
    """Notify as fast as one can; how often."""
    count = 0
    for _ in seconds(length):
        for _ in range(100):
            ring.notify()
        count += 100
    return count


def test_e1_a_storm_of_events_costs_few_wake_ups(guest: Guest, witness: Guest) -> None:
    """The port stays masked for 50 ms at a time, so that 2 s hold some 40 wake-ups."""
    ring = guest.connect()
    device = guest.host.service.devices[guest.back]
    before = device.stats()["wakeups"]
    sent = 0
    stormer = threading.Thread(target=lambda: storm(ring, 2.0))
    stormer.start()
    turn = 10
    while stormer.is_alive():
        witness.check(turn)
        turn += 1
        sent += 1
    stormer.join()
    # Eight wake-ups are free; then each costs up to 50 ms.
    assert device.stats()["wakeups"] - before < 100
    assert sent > 0
    guest.check(1)


@pytest.mark.parametrize("port", ["closed", "never bound", "bound", "another's", "0", "4294967295"])
def test_e2_a_port_that_cannot_be_bound(guest: Guest, witness: Guest, port: str) -> None:
    channels = guest.env.open_channels()
    mine = channels.bind_unbound(guest.env.back_domid)
    stranger = channels.bind_unbound(guest.env.stranger_domid)
    ring = guest.share()
    # Only now: an earlier unbind would give its number to the ring's own port.
    channels.unbind(mine)
    assert witness.ring is not None
    value = {
        "closed": mine, "never bound": 3999, "bound": witness.ring.port, "another's": stranger,
    }.get(port, port)  # fmt: skip
    guest.publish({**ring.keys(), "event-channel": str(value)})
    guest.wait("5", "6")
    assert guest.error()
    guest.write("state", "6")
    guest.wait("6")
    channels.close()


def test_e3_events_while_it_closes(guest: Guest) -> None:
    ring = guest.connect()
    stormer = threading.Thread(target=lambda: storm(ring, 0.5))
    stormer.start()
    guest.write("state", "5")
    guest.wait("5", "6")
    guest.write("state", "6")
    guest.wait("6")
    stormer.join()


# ------------------------------------------------------------------ XenStore


@pytest.mark.parametrize("length", [1.5, pytest.param(30.0, marks=pytest.mark.long)])
def test_x1_a_state_that_flaps(guest: Guest, witness: Guest, length: float) -> None:
    """Every state, every jump, as fast as the store takes it, while another device works."""
    rng = random.Random(7)
    guest.offer()
    with busy(witness) as statuses:
        for _ in seconds(length):
            guest.write("state", str(rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8])))
    assert set(statuses) == {0}
    guest.write("state", "6")
    guest.drop()
    # It has kept its head: a frontend that means it is served.
    guest.come_back()
    guest.check(1)


BAD_KEYS: list[dict[str, str | bytes | None]] = [
    {"ring-ref": None}, {"event-channel": None}, {"ring-ref": ""}, {"ring-ref": "-1"},
    {"ring-ref": "0x10"}, {"ring-ref": " 5"}, {"ring-ref": "99999999999"},
    {"ring-ref": b"\0\1\2"}, {"ring-ref": b"\xff\xfe"}, {"ring-ref": "9" * 2000},
    {"event-channel": "-1"}, {"event-channel": "٣"}, {"event-channel": "4294967296"},
    {"protocol": "pdp11-abi"}, {"protocol": b"\xff"}, {"ring-page-order": "5"},
    {"ring-page-order": "1"}, {"ring-page-order": "-1"}, {"multi-queue-num-queues": "2"},
    {"multi-queue-num-queues": "0"}, {"multi-queue-num-queues": "3"},
    {"multi-queue-num-queues": "2", "queue-0/ring-ref": "8", "queue-0/event-channel": "5"},
]  # fmt: skip


@pytest.mark.parametrize("changes", BAD_KEYS, ids=lambda changes: str(changes)[:60])
def test_x2_keys_that_make_no_sense(guest: Guest, changes: dict[str, str | bytes | None]) -> None:
    guest.offer(changes)
    guest.wait("5", "6")
    assert guest.error()
    guest.write("state", "6")
    guest.wait("6")


def test_x2_thousands_of_subkeys(guest: Guest) -> None:
    guest.wait("2")
    for number in range(400):
        guest.write(f"junk/{number}", "x")
    guest.offer()
    guest.wait("5", "6")
    assert "keys" in (guest.error() or "") or "nodes" in (guest.error() or "")
    guest.write("state", "6")
    guest.wait("6")


FLIGHT = 50
"""Writes of `state` in flight at a time."""


@pytest.mark.parametrize("count", [1_000, pytest.param(100_000, marks=LONG)])
def test_x3_a_flood_of_watch_events(guest: Guest, witness: Guest, count: int) -> None:
    """XSA-349: each event may cost time, none may cost memory."""
    guest.connect()

    async def flood(number: int) -> None:
        tools, path = guest.host.tools, guest.front_path
        for turn in range(0, number, FLIGHT):
            await asyncio.gather(
                tools.write(f"{path}/junk", turn),
                *(tools.write(f"{path}/state", "4") for _ in range(FLIGHT)),
            )

    guest.host.run(flood(5 * FLIGHT))
    gc.collect()
    before = resident()
    flooding = guest.host.spawn(flood(count))
    witness.check(5)
    flooding()
    gc.collect()
    assert resident() - before < 2 << 20
    guest.check(1)


def test_x4_a_frontend_directory_of_another_domain(guest: Guest) -> None:
    """XSA-175: what others can write is not believed."""
    guest.wait("2")
    ring = Blkfront(guest.env, data_pages=1)
    guest.ring = ring
    for key, value in ring.keys().items():
        if key != "state":
            guest.write(key, value)
    perms = f"b{guest.env.stranger_domid},b{guest.env.back_domid}"
    guest.host.run(guest.host.tools.set_perms(guest.front_path, perms))
    guest.write("state", "3")
    guest.wait("5", "6")
    assert "belongs to domain" in (guest.error() or "")


def test_x4_a_frontend_directory_that_goes(guest: Guest) -> None:
    guest.connect()
    guest.check(1)
    guest.host.rm(guest.front_path)
    guest.wait("6")
    guest.drop()


def test_x4_a_path_that_points_at_another_guest(host: Host, witness: Guest) -> None:
    """`frontend` is the toolstack's word, but it must name the domain of the path."""
    back = f"{host.root}/{host.env.front_domid}/99"
    keys = {
        "frontend": f"/local/domain/{host.env.stranger_domid}/device/vbd/99",
        "frontend-id": str(host.env.front_domid), "online": "1", "params": "/dev/null",
        "mode": "w", "state": "1",
    }  # fmt: skip
    for key, value in keys.items():
        host.write(f"{back}/{key}", value)
    witness.check(5)
    assert host.get(f"{back}/state") == "1", "it was taken up"
    host.rm(back)
    assert back not in host.service.devices


def test_x8_the_backend_s_directory_is_removed_in_mid_io(guest: Guest) -> None:
    ring = guest.connect()
    slots = [ring.request(0, 0, ring.whole_pages(4))[1] for _ in range(16)]
    ring.send(slots)
    guest.host.rm(guest.back)
    eventually(lambda: guest.back not in guest.host.service.devices)
    assert guest.host.get(f"{guest.back}/state") is None, "a corpse was written back"


def test_x8_offline_in_mid_io_finishes_the_io(guest: Guest) -> None:
    ring = guest.connect()
    idents = []
    for _ in range(16):
        ident, slot = ring.request(1, 0, ring.whole_pages(1))
        ring.send([slot])
        idents.append(ident)
    guest.host.write(f"{guest.back}/online", "0")
    guest.host.write(f"{guest.back}/state", "5")
    answers = ring.receive(16)
    assert sorted(answer.id for answer in answers) == idents
    assert {answer.status for answer in answers} == {0}


# ------------------------------------------------------------------ life


def test_a_ring_that_breaks_the_protocol_closes_its_device_only(guest: Guest) -> None:
    ring = guest.connect()
    ring.scribble(0, 1000)
    ring.notify()
    guest.wait("5", "6")
    assert "req_prod" in (guest.error() or "")
    guest.write("state", "6")
    guest.wait("6")
    # A frontend that mends its ways is served again, and the error is told no longer.
    guest.drop()
    guest.write("state", "1")
    guest.connect()
    guest.check(1)
    assert guest.error() is None


def test_l1_the_domain_dies_in_mid_request(host: Host, witness: Guest, image: Path) -> None:
    guest = Guest(host, image, HOT, host.env.sibling())
    ring = guest.connect()
    ring.send([ring.request(1, 0, ring.whole_pages(4))[1] for _ in range(8)])
    guest.die()
    guest.wait("6")
    guest.remove()


@pytest.mark.parametrize("cycles", [20, pytest.param(1000, marks=[*LONG, pytest.mark.alone])])
def test_l9_attach_and_detach(host: Host, witness: Guest, image: Path, cycles: int) -> None:
    """Descriptors, mappings, ports and grants equal; memory flat after the hundredth."""
    before = host.env.census()
    settled = 0
    for cycle in range(cycles):
        guest = Guest(host, image, HOT)
        guest.connect()
        guest.check(cycle)
        guest.remove()
        if cycle == 100:
            gc.collect()
            settled = resident()
    eventually(lambda: host.env.census() == before)
    gc.collect()
    if settled:
        assert resident() - settled < 1 << 20
