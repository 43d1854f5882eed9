# SPDX-License-Identifier: MIT
"""`xenpy grant` and `xenpy evtchn` between processes of dom0's, and on pages of a stock guest's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conformance.block_front import eventually
from conformance.daemon_process import PATIENCE, XENPY, DaemonProcess
from conformance.guests import daemon, domains, guest, image
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.vm import disk

pytestmark = pytest.mark.slow

__all__ = ["daemon", "image", "nothing_left_in_the_hypervisor"]

PAGE = 4096


def run(*words: str, status: int = 0, given: bytes = b"") -> bytes:
    done = subprocess.run(
        [*XENPY, *words], input=given, capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def listed(*words: str) -> Any:
    return json.loads(run(*words, "--json"))


@contextmanager
def held(*words: str) -> Iterator[dict[str, Any]]:
    """A verb that holds something, and what it says of it; told to end in the end."""
    with subprocess.Popen(
        [*XENPY, *words, "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
            process.communicate(b"\n", timeout=PATIENCE)
            assert process.returncode == 0
        finally:
            process.kill()


def test_a_page_is_shared_mapped_and_written(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    content = bytes(range(256)) * 20
    before.write_bytes(content)
    words = ("grant", "share", "0", "--pages", "2", "--from", str(before), "--to", str(after))
    with held(*words) as said:
        first, second = (str(ref) for ref in said["refs"])
        both = bytearray(content + bytes(2 * PAGE - len(content)))
        assert run("grant", "map", "0", first, second, "--to", "-") == both
        assert run("grant", "map", "0", first).startswith(b"00000000  00 01 02 03 ")
        part = ("--offset", "16", "--length", "32")
        assert run("grant", "copy", "0", first, *part, "--to", "-") == content[16:48]
        run("grant", "map", "0", second, "--write", "--from", "-", given=b"mapped")
        run("grant", "copy", "0", hex(int(second)), "--offset", "8", "--from", "-", given=b"copied")
    end = after.read_bytes()
    both[PAGE : PAGE + 6] = b"mapped"
    both[PAGE + 8 : PAGE + 14] = b"copied"
    assert end == both


def test_what_is_read_only_is_not_written() -> None:
    with held("grant", "share", "0", "--read-only") as said:
        ref = str(said["refs"][0])
        run("grant", "map", "0", ref, "--write", "--from", "-", given=b"x", status=1)
        run("grant", "copy", "0", ref, "--from", "-", given=b"x", status=1)
        assert run("grant", "map", "0", ref, "--to", "-") == bytes(PAGE)
    run("grant", "map", "0", "4000000", status=1)


def mappers() -> set[str]:
    """The processes that have mapped a grant, as the page on looking around finds them."""
    said = disk.run("sh", "-c", "grep -ls /dev/xen/gntdev /proc/[0-9]*/maps || :")
    return set(said.splitlines())


def test_who_holds_what() -> None:
    with held("grant", "share", "0", "--pages", "3") as said:
        refs = said["refs"]
        assert not set(refs) & {one["ref"] for one in listed("grant", "ls", "--of", "0")}
        before = mappers()
        with held("grant", "map", "0", *map(str, refs[:2]), "--write", "--hold"):
            found = [one for one in listed("grant", "ls", "--of", "0") if one["ref"] in refs]
            assert [one["ref"] for one in found] == sorted(refs[:2])
            assert {(one["domid"], one["holder"]) for one in found} == {(0, 0)}
            assert all(one["writers"] >= 1 for one in found)
            (counted,) = listed("grant", "ls", "--of", "0", "--by", "0", "--count")
            assert counted["grants"] >= 2
            assert len(mappers() - before) == 1
        assert not set(refs) & {one["ref"] for one in listed("grant", "ls", "--of", "0")}


def test_a_port_is_offered_and_notified() -> None:
    with held("evtchn", "bind", "0", "--seconds", str(PATIENCE)) as said:
        port = said["port"]
        (offered,) = [one for one in listed("evtchn", "ls", "0") if one["port"] == port]
        assert (offered["bound_to"], offered["remote_domid"]) == ("unbound", 0)
        run("evtchn", "notify", "0", str(port), "--count", "2", "--interval", "0.5")
    assert port not in {one["port"] for one in listed("evtchn", "ls", "0")}


def test_each_event_is_a_line() -> None:
    with subprocess.Popen(
        [*XENPY, "evtchn", "bind", "0", "--count", "2", "--json"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            port = json.loads(process.stdout.readline())["port"]
            # An interval is long enough for the other process to have printed the one before.
            run("evtchn", "notify", "0", str(port), "--count", "2", "--interval", "2")
            said, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in said.splitlines()] == [1, 2]


def test_the_ring_of_a_stock_guest_and_a_leak(daemon: DaemonProcess, image: Path) -> None:
    """xen-blkfront's ring, mapped beside its backend; held on, it keeps the guest a zombie."""
    with guest("leaky", image) as name:
        domid = disk.domid(name)
        ref = disk.run("xenstore-read", f"/local/domain/{domid}/device/vbd/51712/ring-ref").strip()
        ring = run("grant", "map", domid, ref, "--to", "-")
        produced = int.from_bytes(ring[:4], "little")
        (disk_of_it,) = [one for one in listed("ls", "vbd3") if one["domid"] == int(domid)]
        assert disk_of_it["backend"]["state"] == "CONNECTED"
        assert 0 < produced < 1 << 20, ring[:64].hex()
        peers = listed("evtchn", "ls", domid, "--peer", "0")
        assert all(one["remote_domid"] == 0 for one in peers)
        assert len(peers) >= 2, "its disk's and its XenStore's at least"
        ours = listed("grant", "ls", "--of", domid, "--by", "0")
        (mapped,) = [one for one in ours if one["ref"] == int(ref)]
        with held("grant", "map", domid, ref, "--hold"):
            (twice,) = [
                one for one in listed("grant", "ls", "--of", domid) if one["ref"] == int(ref)
            ]
            assert twice["writers"] == mapped["writers"] > 0
            assert twice["readers"] > mapped["readers"]
            disk.run("xl", "destroy", name)
            # xenstored and xenconsoled let go of its first two pages when they hear of it.
            eventually(
                lambda: [one["ref"] for one in listed("grant", "ls", "--of", domid)] == [int(ref)]
            )
            assert "(null)" in domains()
            (only,) = listed("grant", "ls", "--of", domid, "--count")
            assert only == {"domid": int(domid), "holder": 0, "grants": 1}
    eventually(lambda: listed("grant", "ls", "--of", domid) == [])
    eventually(lambda: "(null)" not in domains())
