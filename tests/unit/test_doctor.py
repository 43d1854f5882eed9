# SPDX-License-Identifier: MIT
"""`xenpy doctor` on machines made of files, and on this one, which has no Xen."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from xenpy.cli import doctor as verb
from xenpy.cli.main import main
from xenpy.doctor import NODES, Finding, Host, Level, examine, is_xen, store_findings
from xenpy.testing.fake_xenstored import FakeXenstored

DOM0 = {
    "/sys/hypervisor/type": "xen",
    "/sys/hypervisor/version/major": "4",
    "/sys/hypervisor/version/minor": "20",
    "/proc/sys/kernel/osrelease": "6.12.0",
    "/proc/xen/capabilities": "control_d",
    "/proc/7/comm": "xenstored",
    "/proc/8/comm": "xenconsoled",
    "/proc/9/comm": "python3",
    "/sys/bus/xen-backend/drivers_autoprobe": "1",
    "/sys/module/xen_gntalloc/parameters/limit": "1024",
    "/etc/xen/scripts/block-xenpy": "#!/bin/sh",
    **{f"/dev/xen/{name}": "" for name in NODES},
}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A control domain that lacks nothing."""
    host = Host(tmp_path)
    for name, text in DOM0.items():
        put(host, name, text)
    host.path("/etc/xen/scripts/block-xenpy").chmod(0o755)
    return host


def put(host: Host, name: str, text: str) -> None:
    path = host.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def about(host: Host, topic: str) -> Finding:
    """The only finding of a topic."""
    (found,) = [finding for finding in examine(host) if finding.topic == topic]
    return found


def test_nothing_is_wrong(host: Host) -> None:
    assert is_xen(host)
    assert {one.level for one in examine(host)} <= {Level.OK, Level.NOTE}
    assert about(host, "xen").text == "Xen 4.20, Linux 6.12.0; this is the control domain"
    assert about(host, "xenstored").text == "xenstored runs, process 7"
    assert about(host, "xl").text == "backendtype=tap, script=block-xenpy"
    assert about(host, "limits").text.startswith("1024 pages may be granted by programs; ")


def test_a_guest_has_no_toolstack(host: Host) -> None:
    put(host, "/proc/xen/capabilities", "")
    topics = {one.topic for one in examine(host)}
    assert not topics & {"xl", "xenstored", "xenconsoled"}
    assert about(host, "xen").text.endswith("this is a guest")
    for name in ("gntdev", "gntalloc"):
        host.path(f"/dev/xen/{name}").unlink()
    assert about(host, "gntdev").level is Level.WARNING
    assert about(host, "gntalloc").level is Level.PROBLEM


@pytest.mark.parametrize(
    ("gone", "topic", "level", "remedy"),
    [
        ("/dev/xen/evtchn", "evtchn", Level.PROBLEM, "modprobe xen-evtchn"),
        ("/dev/xen/gntdev", "gntdev", Level.PROBLEM, "modprobe xen-gntdev"),
        ("/dev/xen/gntalloc", "gntalloc", Level.WARNING, "modprobe xen-gntalloc"),
        ("/dev/xen/xenbus", "xenbus", Level.WARNING, "CONFIG_XEN"),
        ("/proc/7/comm", "xenstored", Level.NOTE, "systemctl status xenstored"),
        ("/proc/8/comm", "xenconsoled", Level.WARNING, "systemctl start xenconsoled"),
        ("/etc/xen/scripts/block-xenpy", "xl", Level.WARNING, "install -m 755"),
    ],
)
def test_what_is_missing_has_a_remedy(
    host: Host, gone: str, topic: str, level: Level, remedy: str
) -> None:
    host.path(gone).unlink()
    found = about(host, topic)
    assert found.level is level
    assert remedy in found.remedy


def test_a_device_that_is_not_for_us(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may open anything.
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("gntdev"))
    found = about(host, "gntdev")
    assert (found.level, found.text) == (
        Level.PROBLEM, "/dev/xen/gntdev is not for you: a backend cannot map what guests grant",
    )  # fmt: skip


def test_an_old_xl_has_another_way(host: Host) -> None:
    put(host, "/sys/hypervisor/version/minor", "17")
    found = about(host, "xl")
    assert found.level is Level.NOTE
    assert "xenpy attach block" in found.remedy


def test_proc_xen_is_not_mounted(host: Host) -> None:
    host.path("/proc/xen/capabilities").unlink()
    notes = [one for one in examine(host) if one.topic == "xen"]
    assert [one.level for one in notes] == [Level.OK, Level.NOTE]


@pytest.mark.parametrize(
    ("autoprobe", "served", "level"),
    [("1", "", Level.NOTE), ("1", "vbd", Level.PROBLEM), ("0", "vbd", Level.OK)],
)
def test_blkback_competes(host: Host, autoprobe: str, served: str, level: Level) -> None:
    host.path("/sys/bus/xen-backend/drivers/vbd").mkdir(parents=True)
    put(host, "/sys/bus/xen-backend/drivers_autoprobe", autoprobe)
    if served:
        put(host, f"/run/xenpy/backend-{served}.lock", "9")
    found = about(host, "vbd")
    assert found.level is level
    assert found.text.startswith("xen-blkback is loaded")
    assert ("process 9 serves too" in found.text) == (level is Level.PROBLEM)
    assert ("modprobe -r xen-blkback" in found.remedy) == (level is not Level.OK)


def test_daemons_of_ours_are_named_while_they_live(host: Host) -> None:
    put(host, "/run/xenpy/backend-vbd.lock", "9")
    put(host, "/run/xenpy/backend-vbd3.lock", "10")
    put(host, "/run/xenpy/backend-nobody.lock", "")
    put(host, "/run/xenpy/other", "9")
    assert about(host, "xenpy").text == "process 9 serves vbd"
    assert about(host, "vbd").text == "no driver of Linux's competes for vbd"


def test_a_driver_that_cannot_be_loaded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name, value = "lamp", "lamp.driver:DRIVER"

        def load(self) -> object:
            raise RuntimeError("no bulb")

    monkeypatch.setattr("xenpy.doctor.entry_points", lambda group: [Broken()])
    found = about(host, "driver")
    assert found.text == "the driver lamp cannot be loaded: RuntimeError: no bulb"
    assert found.remedy == "look into lamp.driver:DRIVER"


def test_xenstore_answers_or_does_not(tmp_path: Path) -> None:
    async def look() -> tuple[object, object]:
        async with FakeXenstored() as fake:
            here = await store_findings(fake.path, 5.0)
        return here, await store_findings(str(tmp_path / "nobody"), 0.2)

    here, gone = asyncio.run(look())
    (found,), domid = here
    assert (found.level, domid) == (Level.OK, 0)
    assert found.text.endswith(": this is domain 0")
    (found,), domid = gone
    assert (found.level, domid) == (Level.PROBLEM, None)
    assert "systemctl start xenstored" in found.remedy


def test_no_xen_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 77
    assert "-> boot Xen" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 77
    said = json.loads(capsys.readouterr().out)
    assert said["domid"] is None
    assert [(one["level"], one["topic"]) for one in said["findings"]] == [("problem", "xen")]


@pytest.mark.parametrize(("level", "status"), [(Level.WARNING, 0), (Level.PROBLEM, 1)])
def test_a_problem_is_a_failure(
    level: Level, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding(Level.OK, "one", "good"), Finding(level, "two", "word " * 40, "mend it")]

    async def answered(*_: object) -> tuple[list[Finding], int]:
        return [], 0

    monkeypatch.setattr(verb, "is_xen", lambda host: True)
    monkeypatch.setattr(verb, "examine", lambda host: found)
    monkeypatch.setattr(verb, "store_findings", answered)
    assert main(["doctor"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok       one          good"
    assert lines[-1] == f"{'':22}-> mend it"
    assert all(len(line) <= verb.WIDTH for line in lines)
    assert main(["doctor", "--quiet"]) == status
    assert capsys.readouterr().out.splitlines() == lines[1:]
