# SPDX-License-Identifier: MIT
"""What a machine lacks for drivers of xenpy, and what would get in their way: `xenpy doctor`.

Each check looks at one thing and says what it found; a finding that is bad has a remedy.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from xenpy.device_counters import MODULES, daemon_of
from xenpy.errors import XenError, XenPermissionError
from xenpy.types import DomId
from xenpy.xenstore import Store

__all__ = ["Finding", "Host", "Level", "examine", "is_xen", "store_findings"]

TEXT_LIMIT: Final = 4096
"""Bytes of a file in /proc or /sys that are looked at."""
TAP_SINCE: Final = (4, 19)
"""xl takes `backendtype=tap` without blktap's kernel module since then (Xen's 6d7d8d2b3e)."""
SCRIPT: Final = Path("/etc/xen/scripts/block-xenpy")
FEW_FILES: Final = 1024
"""Descriptors, of which a disk takes about ten."""


class Level(StrEnum):
    """How bad it is.  `WARNING`: something that not everybody wants does not work; `PROBLEM`:
    something that xenpy is for does not."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


EVERYWHERE, BACKENDS, FRONTENDS = "everywhere", "backends", "frontends"
NODES: Final = {
    "evtchn": ("modprobe xen-evtchn", EVERYWHERE, "nobody can be notified"),
    "gntdev": ("modprobe xen-gntdev", BACKENDS, "a backend cannot map what guests grant"),
    "gntalloc": ("modprobe xen-gntalloc", FRONTENDS, "no frontend or server of vchan has pages"),
    "xenbus": ("a kernel with CONFIG_XEN", FRONTENDS, "a guest cannot reach XenStore"),
}
"""Below /dev/xen: what makes it, who needs it, and what is lost without it."""


@dataclass(frozen=True)
class Finding:
    """What a check says.

    Attributes:
        topic: what it is about, a word.
        remedy: what to do; "" if nothing has to be done.
    """

    level: Level
    topic: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Host:
    """The machine's files.

    Args:
        root: where they are; a test has its own.
        rundir: where daemons of xenpy have their lock files.
    """

    root: Path = Path("/")
    rundir: str = "/run/xenpy"

    def path(self, name: str) -> Path:
        """The file of that absolute name."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """What is in a small file, stripped; "" if it cannot be read."""
        try:
            with self.path(name).open("rb") as file:
                return file.read(TEXT_LIMIT).decode(errors="replace").strip()
        except OSError:
            return ""

    def names(self, name: str) -> list[str]:
        """What is in a directory; nothing if it cannot be read."""
        try:
            return sorted(os.listdir(self.path(name)))
        except OSError:
            return []

    def processes(self) -> dict[str, int]:
        """A process of each name that runs; the kernel cuts names at 15 characters."""
        found: dict[str, int] = {}
        for pid in self.names("/proc"):
            if pid.isdigit() and (name := self.text(f"/proc/{pid}/comm")):
                found.setdefault(name, int(pid))
        return found

    @property
    def control(self) -> bool:
        """This is the domain that rules the others."""
        return "control_d" in self.text("/proc/xen/capabilities")

    @property
    def xen_version(self) -> tuple[int, int] | None:
        """Major and minor, as the hypervisor says."""
        major, minor = (self.text(f"/sys/hypervisor/version/{name}") for name in ("major", "minor"))
        return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def is_xen(host: Host) -> bool:
    """Xen runs below this kernel, and the kernel knows."""
    return host.text("/sys/hypervisor/type") == "xen"


def examine(host: Host) -> Iterator[Finding]:
    """What there is to be said of a machine on which Xen runs, XenStore aside."""
    for check in CHECKS:
        yield from check(host)


def _hypervisor(host: Host) -> Iterator[Finding]:
    version = host.xen_version
    name = "Xen of an unknown version" if version is None else f"Xen {version[0]}.{version[1]}"
    release = host.text("/proc/sys/kernel/osrelease")
    where = "the control domain" if host.control else "a guest"
    yield Finding(Level.OK, "xen", f"{name}, Linux {release}; this is {where}")
    if not host.names("/proc/xen"):
        remedy = "mount -t xenfs xenfs /proc/xen"
        yield Finding(Level.NOTE, "xen", "/proc/xen is not mounted: who rules is guessed", remedy)


def _nodes(host: Host) -> Iterator[Finding]:
    needed = {EVERYWHERE, BACKENDS if host.control else FRONTENDS}
    for name, (remedy, who, loss) in NODES.items():
        level = Level.PROBLEM if who in needed else Level.WARNING
        path = host.path(f"/dev/xen/{name}")
        if not path.exists():
            if remedy.startswith("modprobe"):
                remedy += "; to have it after the next boot, /etc/modules-load.d"
            yield Finding(level, name, f"there is no /dev/xen/{name}: {loss}", remedy)
        elif not os.access(path, os.R_OK | os.W_OK):
            remedy = "run as root, or have a rule of udev's give the device to your group"
            yield Finding(level, name, f"/dev/xen/{name} is not for you: {loss}", remedy)
        else:
            yield Finding(Level.OK, name, f"/dev/xen/{name}")


def _daemons(host: Host) -> Iterator[Finding]:
    running = host.processes()
    for kind, pid in sorted(_served(host).items()):
        yield Finding(Level.OK, "xenpy", f"process {pid} serves {kind}")
    if not host.control:
        return
    store = [name for name in ("xenstored", "oxenstored") if name in running]
    if store:
        yield Finding(Level.OK, "xenstored", f"{store[0]} runs, process {running[store[0]]}")
    else:
        text = "no xenstored runs here; it may be in a domain of its own"
        yield Finding(Level.NOTE, "xenstored", text, "systemctl status xenstored")
    if "xenconsoled" in running:
        yield Finding(Level.OK, "xenconsoled", f"xenconsoled runs, {running['xenconsoled']}")
    else:
        text = "no xenconsoled runs: `xl create` fails, unless `xenpy console every` does"
        yield Finding(Level.WARNING, "xenconsoled", text, "systemctl start xenconsoled")


def _served(host: Host) -> dict[str, int]:
    """The kinds that daemons of xenpy say they serve, and the processes that live."""
    locks = (re.fullmatch(r"backend-(.+)\.lock", name) for name in host.names(host.rundir))
    kinds = (lock[1] for lock in locks if lock)
    found = {kind: daemon_of(kind, host.rundir, host.root) for kind in kinds}
    return {kind: pid for kind, pid in found.items() if pid is not None}


def _rivals(host: Host) -> Iterator[Finding]:
    loaded = set(host.names("/sys/bus/xen-backend/drivers"))
    probing = host.text("/sys/bus/xen-backend/drivers_autoprobe") != "0"
    served = _served(host)
    for kind in sorted(loaded & set(MODULES)):
        module = MODULES[kind]
        if not probing:
            text = f"{module} is loaded, and takes no device: drivers_autoprobe is 0"
            yield Finding(Level.OK, kind, text)
            continue
        level = Level.PROBLEM if kind in served else Level.NOTE
        also = f", which process {served[kind]} serves too" if kind in served else ""
        remedy = (
            f"if xenpy is to serve {kind}: modprobe -r {module}, or echo 0 > "
            "/sys/bus/xen-backend/drivers_autoprobe, which is for every kind"
        )
        yield Finding(
            level, kind, f"{module} is loaded and takes each device of backend/{kind}{also}", remedy
        )
    for kind in sorted(set(MODULES) & set(served) - loaded):
        yield Finding(Level.OK, kind, f"no driver of Linux's competes for {kind}")


def _toolstack(host: Host) -> Iterator[Finding]:
    version = host.xen_version
    if not host.control or version is None:
        return
    if version < TAP_SINCE:
        text = f"xl of Xen {version[0]}.{version[1]} knows no backendtype=tap"
        yield Finding(Level.NOTE, "xl", text, "xl create -p, xenpy attach block, xl unpause")
    elif not os.access(host.path(str(SCRIPT)), os.X_OK):
        text = f"there is no {SCRIPT}: xl cannot attach disks of xenpy's"
        remedy = f"install -m 755 xenpy/data/block-xenpy {SCRIPT}"
        yield Finding(Level.WARNING, "xl", text, remedy)
    else:
        yield Finding(Level.OK, "xl", f"backendtype=tap, script={SCRIPT.name}")


def _limits(host: Host) -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    pages = host.text("/sys/module/xen_gntalloc/parameters/limit")
    granted = f"{pages} pages may be granted by programs; " if pages else ""
    level = Level.NOTE if files <= FEW_FILES else Level.OK
    remedy = "ulimit -n 65536, or LimitNOFILE= of the unit" if files <= FEW_FILES else ""
    yield Finding(level, "limits", f"{granted}{files} files may be open at a time", remedy)


def _drivers(_: Host) -> Iterator[Finding]:
    for point in sorted(entry_points(group="xenpy.drivers"), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:
            # Somebody else's code runs here, and may fail in any way.
            text = f"the driver {point.name} cannot be loaded: {type(error).__name__}: {error}"
            yield Finding(Level.WARNING, "driver", text, f"look into {point.value}")


CHECKS: Final[tuple[Callable[[Host], Iterator[Finding]], ...]] = (
    _hypervisor, _nodes, _daemons, _rivals, _toolstack, _limits, _drivers,
)  # fmt: skip


async def store_findings(path: str | None, timeout: float) -> tuple[list[Finding], DomId | None]:
    """Whether XenStore answers, and who we are to it.

    Args:
        path: as of `Store.open`.
        timeout: seconds that it may take.
    """
    try:
        async with Store.open(path, timeout) as store:
            domid = await store.domid()
            return [Finding(Level.OK, "xenstore", f"{store.path}: this is domain {domid}")], domid
    except XenError as error:
        remedy = "systemctl start xenstored, in the control domain"
        if isinstance(error, XenPermissionError):
            remedy = "run as root"
        return [Finding(Level.PROBLEM, "xenstore", str(error), remedy)], None
