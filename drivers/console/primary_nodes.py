# SPDX-License-Identifier: MIT
"""What XenStore says of a guest's first console: who is to serve it, and who did before.

port, type, tty      the toolstack's and xenconsoled's (console_create_ring of
                     tools/console/daemon/io.c)
xenpy-owner          who has taken it: another word each time
xenpy-saved-port     what the keys were: enough to hand a console back whose taker was
xenpy-saved-tty      killed, at whatever moment
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from xenpy.errors import XenError, XenNotFoundError
from xenpy.paths import domain_path
from xenpy.peer_keys import number
from xenpy.types import DomId, Port
from xenpy.xenstore import NotYet, Reader, Transaction

__all__ = ["OURS", "THEIRS", "Nodes", "ask", "claim", "console_path", "exists", "restore"]

THEIRS: Final = "xenconsoled"
OURS: Final = "xenpy"
"""What `type` says: who is to serve it."""
NO_PORT: Final = 0
"""A `port` that nobody can bind: given it, xenconsoled lets go of the one it has."""
OWNER: Final = "xenpy-owner"
SAVED_PORT: Final = "xenpy-saved-port"
SAVED_TTY: Final = "xenpy-saved-tty"


def console_path(domid: DomId) -> str:
    """The directory of a guest's first console."""
    return f"{domain_path(domid)}/console"


async def exists(reader: Reader, domid: DomId) -> None:
    """For `Store.wait`: until the toolstack has made a guest's first console."""
    for key in ("ring-ref", "port", "type"):
        if await reader.get(f"{console_path(domid)}/{key}") is None:
            raise NotYet


class Nodes(NamedTuple):
    """A console as it stands.

    Attributes:
        port: the guest's end of the event channel.
        tty: where xenconsoled has it.
        owner: who has taken it; None: nobody of ours.
    """

    port: Port
    tty: str
    owner: str | None

    @classmethod
    async def read(cls, reader: Reader, domid: DomId) -> Nodes:
        """Raises:
        XenNotFoundError: there is no such guest, or it has no console.
        XenError: EOPNOTSUPP, it is not xenconsoled's in this domain: a QEMU serves it, or another
            domain.
        PeerError: the nodes make no sense.
        """
        path = console_path(domid)
        keys = ("port", "tty", "type", "backend-id", OWNER, SAVED_PORT, SAVED_TTY)
        found = {key: await reader.get(f"{path}/{key}") for key in keys}
        port = found[SAVED_PORT] or found["port"]
        if port is None:
            hint = "no such guest, or it has no console"
            raise XenNotFoundError(errno.ENOENT, "console", hint, domid=domid)
        server, backend = found["type"] or THEIRS, found["backend-id"] or "0"
        if server not in (THEIRS, OURS) or backend != "0":
            hint = f"its server is {server} of domain {backend}"
            raise XenError(errno.EOPNOTSUPP, "console", hint, domid=domid)
        taken = found[SAVED_PORT] is not None
        tty = (found[SAVED_TTY] if taken else found["tty"]) or ""
        return cls(Port(number({"port": port}, "port")), tty, found[OWNER] if taken else None)


async def ask(tx: Transaction, domid: DomId, owner: str) -> bool:
    """Have xenconsoled let go of the port.  Returns False if somebody has taken the console."""
    nodes = await Nodes.read(tx, domid)
    if nodes.owner is not None:
        return False
    path = console_path(domid)
    await tx.write(f"{path}/{SAVED_PORT}", int(nodes.port))
    await tx.write(f"{path}/{SAVED_TTY}", nodes.tty)
    await tx.write(f"{path}/{OWNER}", owner)
    await tx.write(f"{path}/port", NO_PORT)
    return True


async def claim(tx: Transaction, domid: DomId, port: Port, owner: str, tty: str | None) -> bool:
    """Say that we serve it, having bound `port`.  Returns False if it is another one by now.

    Raises as `Nodes.read`.
    """
    nodes = await Nodes.read(tx, domid)
    if nodes.port != port:
        return False
    path = console_path(domid)
    if await tx.get(f"{path}/type") != OURS:
        # Once more: xenconsoled may have written it since it was asked to let go, and will not
        # again.
        await tx.write(f"{path}/{SAVED_TTY}", await tx.get(f"{path}/tty") or "")
    await tx.write(f"{path}/{SAVED_PORT}", int(port))
    await tx.write(f"{path}/{OWNER}", owner)
    # `type` before `port`, or xenconsoled would take it back.
    await tx.write(f"{path}/type", OURS)
    await tx.write(f"{path}/port", int(port))
    if tty is not None:
        await tx.write(f"{path}/tty", tty)
    return True


async def restore(tx: Transaction, domid: DomId, owner: str | None) -> str | None:
    """Let xenconsoled serve it, if `owner` has taken it, or, for None, if anybody has.

    Returns:
        xenconsoled's tty; None if nothing was done.
    """
    path = console_path(domid)
    keys = ("port", OWNER, SAVED_PORT, SAVED_TTY)
    found = {key: await tx.get(f"{path}/{key}") for key in keys}
    port, tty = found[SAVED_PORT], found[SAVED_TTY] or ""
    if port is None or found["port"] is None or owner not in (None, found[OWNER]):
        return None
    # xenconsoled keeps its pty, and does not say again which that is.
    for key, value in (("type", THEIRS), ("tty", tty), ("port", port)):
        await tx.write(f"{path}/{key}", value)
    for key in (OWNER, SAVED_PORT, SAVED_TTY):
        await tx.rm(f"{path}/{key}")
    return tty
