# SPDX-License-Identifier: MIT
"""Every device that XenStore shows this domain: both ends, whoever serves them.

What is in a frontend's directory its guest has written, and what is in a backend's whoever serves
there: nothing of it is trusted further than to be shown.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from xenpy.errors import PeerError, XenError, XenNotFoundError, XenPermissionError
from xenpy.paths import KIND, BackendPath, domain_path, parse_backend_path
from xenpy.peer_keys import number
from xenpy.types import DevId, DomId, XenbusState
from xenpy.xenbus import parse_state
from xenpy.xenstore import Store

__all__ = ["Listed", "list_devices"]

LIMIT: Final = 4096
"""Devices.  A guest makes directories of devices in its own, which is looked into as well."""
AT_A_TIME: Final = 16
"""Directories that are read at the same time."""
SHOWN: Final = 120
"""Characters of what an end says of itself."""
FEATURE: Final = re.compile(r"feature-([\w-]{1,40})", re.ASCII)
RING: Final = re.compile(r"(?:queue-\d+/)?(?:tx-|rx-)?ring-ref\d*|page-ref", re.ASCII)
"""Of block, net and most, and of fbfront and kbdfront."""
NUMBER: Final = re.compile(r"0|[1-9]\d{0,9}", re.ASCII)


@dataclass(frozen=True)
class Listed:
    """A device.

    Attributes:
        kind, domid, devid: of the backend's directory: KIND/DOMID/DEVID is its name.
        frontend, backend: paths; "" if it is not there, or not to be read.
        domain: the name of the frontend's domain; "" if nobody says.
        frontend_state, backend_state: UNKNOWN if there is none.
        rings: how many queues, or rings; 0 if the frontend has offered none.
        ring_pages: of each.
        protocol: the frontend's ABI, "" if it does not say.
        features: what both ends have in common, without "feature-".
        trouble: what an end says went wrong.
        keys: the backend's own, for whoever knows its kind.
    """

    kind: str
    backend_domid: DomId
    domid: DomId
    devid: DevId
    frontend: str
    backend: str
    domain: str
    frontend_state: XenbusState
    backend_state: XenbusState
    rings: int
    ring_pages: int
    protocol: str
    features: tuple[str, ...]
    trouble: str
    keys: Mapping[str, str]

    @property
    def name(self) -> str:
        """KIND/DOMID/DEVID, as everywhere."""
        return f"{self.kind}/{self.domid}/{self.devid}"


async def list_devices(store: Store, kinds: Iterable[str] = ()) -> list[Listed]:
    """The devices of every domain that may be looked into: in domain 0 of all, in a guest its own.

    Args:
        kinds: only those; all for none.

    Raises:
        PeerError: there are more than `LIMIT`.
    """
    wanted = set(kinds)
    own = await store.domid()
    domains = {DomId(one) for one in await _numbers(store, "/local/domain")} | {own}
    found: set[BackendPath] = set()
    for domid in sorted(domains):
        found |= await _served_by(store, domid)
        found |= await _used_by(store, domid)
        if len(found) > LIMIT:
            raise PeerError(f"there are more than {LIMIT} devices")
    places = sorted(place for place in found if not wanted or place.kind in wanted)
    gate = asyncio.Semaphore(AT_A_TIME)

    async def look(place: BackendPath) -> Listed:
        async with gate:
            return await _look(store, place)

    return list(await asyncio.gather(*(look(place) for place in places)))


async def _served_by(store: Store, domid: DomId) -> set[BackendPath]:
    """What is in a domain's `backend`."""
    home = f"{domain_path(domid)}/backend"
    found: set[BackendPath] = set()
    for kind in filter(KIND.fullmatch, await _names(store, home)):
        for peer in await _numbers(store, f"{home}/{kind}"):
            for devid in await _numbers(store, f"{home}/{kind}/{peer}"):
                found.add(BackendPath(domid, kind, DomId(peer), DevId(devid)))
    return found


async def _used_by(store: Store, domid: DomId) -> set[BackendPath]:
    """Where the frontends in a domain say that their backends are: those alone that are theirs."""
    home = f"{domain_path(domid)}/device"
    found: set[BackendPath] = set()
    for kind in await _names(store, home):
        for devid in await _numbers(store, f"{home}/{kind}"):
            said = await _get(store, f"{home}/{kind}/{devid}/backend")
            try:
                place = parse_backend_path(said)
            except ValueError:
                continue
            if (place.domid, place.devid) == (domid, devid):
                found.add(place)
    return found


async def _look(store: Store, place: BackendPath) -> Listed:
    path = str(place)
    too_many = ""
    front: dict[str, str] = {}
    frontend = ""
    try:
        back = await _keys(store, path)
        frontend = back.get("frontend", "") or await _frontend_of(store, place)
        front = await _keys(store, frontend) if frontend else {}
    except PeerError as error:
        # An end that has filled its directory: the other ends are to be seen all the same.
        back, too_many = {"state": await _get(store, f"{path}/state")}, str(error)
    offered, wanted = _features(back), _features(front)
    return Listed(
        place.kind,
        place.backend_domid,
        place.domid,
        place.devid,
        frontend=frontend if front else "",
        backend=path if back else "",
        domain=_plain(await _get(store, f"{domain_path(place.domid)}/name")),
        frontend_state=parse_state(front.get("state")),
        backend_state=parse_state(back.get("state")),
        rings=_rings(front),
        ring_pages=1 << _number(front, "ring-page-order", 0, 9),
        protocol=_plain(front.get("protocol", "")),
        features=tuple(sorted(offered & wanted)),
        trouble=_plain(
            too_many or back.get("hotplug-error", "") or await _error(store, frontend, path)
        ),
        keys=back,
    )


async def _frontend_of(store: Store, place: BackendPath) -> str:
    """Where it is if the backend's directory has gone."""
    home = f"{domain_path(place.domid)}/device"
    for kind in await _names(store, home):
        path = f"{home}/{kind}/{place.devid}"
        if await _get(store, f"{path}/backend") == str(place):
            return path
    return ""


async def _error(store: Store, frontend: str, backend: str) -> str:
    """What an end has written where xenbus_dev_error of Linux's does."""
    for path in (backend, frontend):
        found = re.fullmatch(r"(/local/domain/\d+)/(.+)", path)
        if found and (said := await _get(store, f"{found[1]}/error/{found[2]}/error")):
            return said
    return ""


def _features(keys: Mapping[str, str]) -> set[str]:
    return {
        found[1]
        for key, value in keys.items()
        if value != "0" and (found := FEATURE.fullmatch(key))
    }


def _rings(front: Mapping[str, str]) -> int:
    queues = _number(front, "multi-queue-num-queues", 0, 1 << 10)
    return queues or int(any(RING.fullmatch(key) for key in front))


def _number(keys: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A number of a frontend's; nonsense is the default."""
    try:
        return min(number(keys, name, default), most)
    except PeerError:
        return default


def _plain(text: str) -> str:
    """To be shown on a terminal: nothing in it moves the cursor, or is wider than it looks."""
    plain = "".join(one if " " <= one <= "~" else "?" for one in text[:SHOWN])
    return " ".join(plain.split())


async def _keys(store: Store, path: str) -> dict[str, str]:
    with _not_there():
        return await store.read_tree(path, 1)
    return {}


async def _get(store: Store, path: str) -> str:
    with _not_there():
        return await store.get(path) or ""
    return ""


async def _names(store: Store, path: str) -> list[str]:
    with _not_there():
        return sorted(await store.list(path))[:LIMIT]
    return []


@contextmanager
def _not_there() -> Generator[None]:
    """A path that has gone, is not for us, or is none: a key named it.  A XenStore that does not
    answer is another thing."""
    try:
        yield
    except (XenNotFoundError, XenPermissionError):
        pass
    except XenError as error:
        if error.errno != errno.EINVAL:
            raise


async def _numbers(store: Store, path: str) -> list[int]:
    return sorted(int(name) for name in await _names(store, path) if NUMBER.fullmatch(name))
