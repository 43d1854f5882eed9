# SPDX-License-Identifier: MIT
"""In dom0: disks that `xenpy serve block` serves, given to guests as the release's xl can.

Since Xen 4.19 libxl knows `backendtype=tap` as an outside backend (6d7d8d2b3e); before,
`xenpy attach` writes the nodes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = [
    "XL_TAKES_TAP",
    "CommandError",
    "attach",
    "create",
    "detach",
    "domid",
    "line",
    "run",
    "xen_version",
]

XL_TAKES_TAP = (4, 19)


class CommandError(Exception):
    """A command failed; the text is what it said."""


def run(*command: str, timeout: float = 300.0) -> str:
    """Run a command; its output.

    Raises:
        CommandError: it failed, or did not end in time.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        message = f"{' '.join(command)[:120]} did not end within {timeout:.0f} s"
        raise CommandError(message) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1500:]
        raise CommandError(f"{' '.join(command)[:120]} ended with status {done.returncode}: {said}")
    return done.stdout


def xen_version() -> tuple[int, int]:
    """Major and minor of the running hypervisor."""
    major, minor = (
        Path("/sys/hypervisor/version", part).read_text() for part in ("major", "minor")
    )
    return int(major), int(minor)


def domid(guest: str) -> str:
    """A running guest's domid."""
    return run("xl", "domid", guest).strip()


def line(image: Path, vdev: str = "xvda", mode: str = "w") -> str:
    """The disk line of an xl.cfg."""
    return f"vdev={vdev},format=raw,access={mode},backendtype=tap,script=block-xenpy,target={image}"


def create(guest: str, image: Path, *options: str) -> None:
    """Create a guest whose xvda is `image`, and wait until it is up, unless with --no-wait."""
    if xen_version() >= XL_TAKES_TAP:
        run("xenvm-guest", "create", guest, "--disk", line(image), *options)
        return
    run("xenvm-guest", "create", guest, "--paused", *options)
    attach(guest, image)
    run("xl", "unpause", guest)
    if "--no-wait" not in options:
        run("xenvm-guest", "wait", guest)


def attach(guest: str, image: Path, vdev: str = "xvda", mode: str = "w") -> None:
    """Give a running guest a further disk."""
    if xen_version() >= XL_TAKES_TAP:
        run("xl", "block-attach", guest, line(image, vdev, mode))
    else:
        words = [f"vdev={vdev}", f"target={image}", f"mode={mode}"]
        run("xenpy", "attach", "block", domid(guest), *words)


def detach(guest: str, vdev: str = "xvda") -> None:
    """Take a disk away from a running guest."""
    if xen_version() >= XL_TAKES_TAP:
        run("xl", "block-detach", guest, vdev)
    else:
        run("xenpy", "detach", "block", domid(guest), f"vdev={vdev}")
