# SPDX-License-Identifier: MIT
"""`xenpy ls` over a fake XenStore and files of its own: what is shown of honest and other ends."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from conformance.store_thread import StoreThread
from xenpy.cli.main import main
from xenpy.device_counters import counters, served_by
from xenpy.device_list import Listed, list_devices
from xenpy.errors import XenTimeoutError
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DevId, DomId, XenbusState
from xenpy.xenstore import Store

BACK = "/local/domain/0/backend/vbd3/7/51712"
FRONT = "/local/domain/7/device/vbd/51712"
DISK = {
    "/local/domain/7/name": "web",
    f"{BACK}/frontend": FRONT,
    f"{BACK}/state": "4",
    f"{BACK}/feature-persistent": "1",
    f"{BACK}/feature-discard": "1",
    f"{BACK}/feature-barrier": "0",
    f"{BACK}/kthread-pid": "9",
    f"{FRONT}/backend": BACK,
    f"{FRONT}/state": "4",
    f"{FRONT}/ring-page-order": "2",
    f"{FRONT}/multi-queue-num-queues": "3",
    f"{FRONT}/protocol": "x86_64-abi",
    f"{FRONT}/feature-persistent": "1",
    f"{FRONT}/feature-barrier": "1",
}


def listed(nodes: Mapping[str, str], *kinds: str) -> list[Listed]:
    async def look() -> list[Listed]:
        async with FakeXenstored() as fake, Store.open(fake.path) as store:
            for path, value in nodes.items():
                await store.write(path, value)
            return await list_devices(store, kinds)

    return asyncio.run(look())


def only(nodes: Mapping[str, str]) -> Listed:
    (found,) = listed(nodes)
    return found


def test_a_device_has_two_ends() -> None:
    disk = only(DISK)
    assert (disk.name, disk.domain, disk.backend_domid) == ("vbd3/7/51712", "web", 0)
    assert (disk.frontend, disk.backend) == (FRONT, BACK)
    assert disk.frontend_state is disk.backend_state is XenbusState.CONNECTED
    assert (disk.rings, disk.ring_pages, disk.protocol) == (3, 4, "x86_64-abi")
    assert disk.features == ("persistent",)
    assert disk.trouble == ""


def test_kinds_are_chosen() -> None:
    other = "/local/domain/0/backend/vif/7/0"
    nodes = {**DISK, f"{other}/state": "2"}
    assert [one.name for one in listed(nodes)] == ["vbd3/7/51712", "vif/7/0"]
    assert [one.name for one in listed(nodes, "vif", "vkb")] == ["vif/7/0"]


@pytest.mark.parametrize("key", ["ring-ref", "ring-ref0", "tx-ring-ref", "page-ref"])
def test_one_ring_has_one_page(key: str) -> None:
    front = {f"{FRONT}/backend": BACK, f"{FRONT}/{key}": "8"}
    disk = only({f"{BACK}/frontend": FRONT, **front})
    assert (disk.rings, disk.ring_pages) == (1, 1)


def test_an_end_that_has_gone() -> None:
    back = {path: value for path, value in DISK.items() if not path.startswith(FRONT)}
    assert only(back).frontend == ""
    front = {path: value for path, value in DISK.items() if not path.startswith(BACK)}
    disk = only(front)
    assert (disk.backend, disk.frontend) == ("", FRONT)
    assert disk.backend_state is XenbusState.UNKNOWN


@pytest.mark.parametrize(
    "claimed",
    ["nonsense", "/local/domain/0/backend/vbd3/8/51712", "/local/domain/0/backend/vbd3/7/51728"],
)
def test_a_frontend_claims_only_what_is_its_own(claimed: str) -> None:
    assert listed({f"{FRONT}/backend": claimed, f"{FRONT}/state": "4"}) == []


def test_what_a_guest_writes_moves_no_cursor() -> None:
    nodes = {
        **DISK,
        "/local/domain/7/name": "a\x1b[2Jb" + "c" * 500,
        f"{FRONT}/protocol": "\n\n",
        f"{FRONT}/state": "44",
        f"{FRONT}/ring-page-order": "4000000000",
        f"{FRONT}/multi-queue-num-queues": "-1",
        f"{FRONT}/ring-ref": "1",
        "/local/domain/7/error/device/vbd/51712/error": "22 \x07bell",
    }
    disk = only(nodes)
    assert disk.domain == "a?[2Jb" + "c" * 114
    assert disk.protocol == "??"
    assert only({**DISK, "/local/domain/7/name": "a   b\u6f22"}).domain == "a b?"
    assert disk.frontend_state is XenbusState.UNKNOWN
    assert (disk.rings, disk.ring_pages) == (1, 512)
    assert disk.trouble == "22 ?bell"


def test_trouble_of_the_backend_s_comes_first() -> None:
    front = {"/local/domain/7/error/device/vbd/51712/error": "front"}
    back = {"/local/domain/0/error/backend/vbd3/7/51712/error": "back"}
    hotplug = {f"{BACK}/hotplug-error": "no such file"}
    assert only({**DISK, **front}).trouble == "front"
    assert only({**DISK, **front, **back}).trouble == "back"
    assert only({**DISK, **front, **back, **hotplug}).trouble == "no such file"


def test_an_end_that_has_filled_its_directory_is_shown_as_that() -> None:
    many = {f"{FRONT}/key-{number}": "x" for number in range(5000)}
    disk = only({**DISK, **many})
    assert "more than" in disk.trouble
    assert disk.backend_state is XenbusState.CONNECTED


def test_a_store_that_does_not_answer_is_no_device_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def slow(*_: object) -> str:
        raise XenTimeoutError(errno.ETIMEDOUT, "read")

    monkeypatch.setattr(Store, "get", slow)
    with pytest.raises(XenTimeoutError):
        listed(DISK)


def device(kind: str, keys: Mapping[str, str] | None = None) -> Listed:
    state = XenbusState.CONNECTED
    return Listed(
        kind, DOM0, DomId(7), DevId(0), "", "", "", state, state, 1, 1, "", (), "", keys or {}
    )


def put(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_counters_of_linux_s_drivers(tmp_path: Path) -> None:
    node = "sys/bus/xen-backend/devices"
    put(tmp_path, f"{node}/vbd-7-0/statistics/rd_req", "12\n")
    put(tmp_path, f"{node}/vbd-7-0/statistics/wr_sect", "nonsense\n")
    (tmp_path / f"{node}/vbd-7-0/driver").symlink_to("../../drivers/vbd")
    assert counters(device("vbd"), 0, tmp_path) == {"rd_req": 12}
    assert counters(device("vbd"), 1, tmp_path) == {}
    assert served_by(device("vbd"), 0, root=tmp_path) == "xen-blkback"
    assert served_by(device("vbd"), 1, root=tmp_path) == ""
    put(tmp_path, "sys/class/net/vif7.0/statistics/rx_bytes", "99\n")
    assert counters(device("vif"), 0, tmp_path) == {"tx_bytes": 99}


def test_counters_that_xentop_reads(tmp_path: Path) -> None:
    disk = device("vbd3", {"kthread-pid": "9"})
    assert counters(disk, 0, tmp_path) == {}
    put(tmp_path, "dev/shm/td3-9/vbd-7-0", struct.pack("<II11Q", 1, 0, *range(1, 12)))
    assert counters(disk, 0, tmp_path) == {
        "oo_req": 1, "rd_req": 3, "wr_req": 7, "rd_sect": 4, "wr_sect": 8, "errors": 10,
    }  # fmt: skip
    put(tmp_path, "dev/shm/td3-9/vbd-7-0", struct.pack("<II11Q", 2, 0, *range(1, 12)))
    assert counters(disk, 0, tmp_path) == {}
    assert counters(device("vbd3", {"kthread-pid": "../../etc"}), 0, tmp_path) == {}


def test_a_daemon_of_ours_is_named_while_it_lives(tmp_path: Path) -> None:
    put(tmp_path, "run/xenpy/backend-vbd3.lock", f"{os.getpid()}\n")
    assert served_by(device("vbd3"), 0, root=tmp_path) == ""
    (tmp_path / f"proc/{os.getpid()}").mkdir(parents=True)
    assert served_by(device("vbd3"), 0, root=tmp_path) == f"xenpy {os.getpid()}"


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with StoreThread() as thread:

        async def fill() -> None:
            async with Store.open(thread.path) as store:
                for path, value in {**DISK, f"{BACK}/hotplug-error": "no such file"}.items():
                    await store.write(path, value)

        asyncio.run(fill())
        assert main(["ls", "--store", thread.path]) == 0
        table = capsys.readouterr().out.splitlines()
        assert main(["ls", "--store", thread.path, "--json"]) == 0
        (disk,) = json.loads(capsys.readouterr().out)
        assert main(["ls", "vif", "--store", thread.path, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []
    assert table[0].split() == [
        "DEVICE", "DOMAIN", "BACKEND", "FRONTEND", "RINGS", "SERVED", "BY", "DONE", "FEATURES",
    ]  # fmt: skip
    assert table[1].split() == [
        "vbd3/7/51712", "web", "0", "Connected", "Connected", "3x4", "-", "-", "persistent",
    ]  # fmt: skip
    assert table[2:] == ["  ! no such file"]
    assert disk["backend"] == {"domid": 0, "path": BACK, "state": "CONNECTED"}
    assert disk["features"] == ["persistent"]


def test_it_watches_until_it_is_told_to_stop(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([{"rd_req": 100, "rd_sect": 0}, {"rd_req": 130, "rd_sect": 4096}])

    def counted(_: Listed, __: int) -> Mapping[str, int]:
        try:
            return next(looks)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("xenpy.cli.ls.counters", counted)
    with StoreThread() as thread:

        async def fill() -> None:
            async with Store.open(thread.path) as store:
                for path, value in DISK.items():
                    await store.write(path, value)

        asyncio.run(fill())
        assert main(["ls", "--store", thread.path, "--watch", "0.01", "--json"]) == 130
    (line,) = capsys.readouterr().out.splitlines()
    (disk,) = json.loads(line)
    assert disk["counters"] == {"rd_req": 130, "rd_sect": 4096}
    assert disk["rates"]["rd_req"] > 0
