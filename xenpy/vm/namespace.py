# SPDX-License-Identifier: MIT
"""Root's view of a tree without being root, and mounts that nobody else sees.

Image building and the C build need a chroot, files owned by root and a few bind
mounts.  All of it runs in a mount and pid namespace of its own (unshare(1)), so
nothing stays mounted or running, whatever happens.  A user who is not root gets a user
namespace on top, with the ids of /etc/subuid (package `uidmap`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from xenpy.vm.errors import VmError

__all__ = ["chroot_command", "is_root", "prefix", "remove", "run"]


def is_root() -> bool:
    """True if no user namespace is needed."""
    return os.geteuid() == 0


def prefix() -> list[str]:
    """The command that starts another one in namespaces of its own."""
    user = [] if is_root() else ["--user", "--map-auto", "--map-root-user"]
    return ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child"]


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    what: str,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    private: bool = True,
) -> None:
    """Run `argv`, inside the namespaces if `private`; its output goes to `log`.

    Raises VmError with the end of the log if it fails.
    """
    command = [*(prefix() if private else []), *(os.fspath(word) for word in argv)]
    environment = {**os.environ, **(env or {})}
    if log is None:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
        )
        output = (done.stdout + done.stderr).decode(errors="replace")
    else:
        with log.open("ab") as handle:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
            )
        output = log.read_text(errors="replace")
    if done.returncode:
        raise VmError(
            f"{what} failed: {command_name(argv)} ended with status {done.returncode}",
            details="\n".join(output.splitlines()[-25:]),
            hint=f"the whole output is in {log}" if log else "",
        )


def command_name(argv: Sequence[str | os.PathLike[str]]) -> str:
    """What to call a command in a message: its program, and the module if it is Python's."""
    words = [os.fspath(word) for word in argv]
    if words[0] == sys.executable and words[1:2] == ["-m"]:
        return words[2]
    return os.path.basename(words[0])


def chroot_command(tree: Path, script: str, binds: Mapping[Path, str]) -> list[str]:
    """The command that runs the shell text `script` inside `tree`.

    `binds` maps host directories to places in the tree.  To be run by `run`: the mounts
    are made in its namespace only.
    """
    text = ["set -e", 'tree="$1"; shift', 'mount --rbind /dev "$tree/dev"']
    arguments = [os.fspath(tree)]
    for source, place in binds.items():
        text.append(f'mkdir -p "$tree{place}"; mount --bind "$1" "$tree{place}"; shift')
        arguments.append(os.fspath(source))
    text.append('exec chroot "$tree" /bin/sh -e -c "$1"')
    return ["sh", "-c", "\n".join(text), "xenvm-chroot", *arguments, script]


def remove(path: Path) -> None:
    """Remove a tree whose files may belong to the ids of a user namespace."""
    if path.exists():
        subprocess.run(
            [*([] if is_root() else prefix()), "rm", "-rf", "--one-file-system", "--", path],
            check=False,
            stdin=subprocess.DEVNULL,
        )
