# SPDX-License-Identifier: MIT
"""ssh to dom0 on 127.0.0.1, with keys that were made for this cache and nothing else.

One master connection per command carries everything (a handshake costs a second under
emulation); sessions on it cost a tenth of that.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from xenpy.vm.cache import Cache, digest

__all__ = ["Keys", "Link"]

HOST_ALIAS = "xenvm"


@dataclass(frozen=True)
class Keys:
    """The keys of this cache: dom0's host key, ours, and dom0's towards its guests."""

    directory: Path

    @classmethod
    def ensure(cls, cache: Cache) -> Keys:
        """The keys, made if there are none."""
        directory = cache.root / "keys"
        if not directory.is_dir():
            with cache.locked("keys", "making ssh keys"):
                if not directory.is_dir():
                    with cache.building(directory) as work:
                        cls.make(work)
        return cls(directory)

    @classmethod
    def make(cls, directory: Path) -> Keys:
        """New keys in `directory`, which is there and empty."""
        directory.chmod(0o700)
        for name in ("host_key", "client_key", "guest_key"):
            _generate(directory / name)
        public = (directory / "host_key.pub").read_text()
        (directory / "known_hosts").write_text(f"{HOST_ALIAS} {public}")
        return cls(directory)

    @property
    def fingerprint(self) -> str:
        """Changes with the keys: the image holds their public halves."""
        return digest(
            *((self.directory / f"{name}_key.pub").read_bytes()
              for name in ("host", "client", "guest"))
        )  # fmt: skip


def _generate(path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "xenvm", "-f", os.fspath(path)],
        check=True,
        stdin=subprocess.DEVNULL,
    )


@dataclass(frozen=True)
class Link:
    """Where and how to reach one dom0.

    `directory` holds the control socket; ssh runs with it as working directory, because
    the path of a unix socket may be 107 bytes long at most.
    """

    keys: Keys
    port: int
    directory: Path
    control: str = "ssh"

    def options(self) -> list[str]:
        """What every ssh needs to know."""
        settings = {
            "User": "root",
            "IdentityFile": os.fspath(self.keys.directory / "client_key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": os.fspath(self.keys.directory / "known_hosts"),
            "HostKeyAlias": HOST_ALIAS,
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ControlPath": self.control,
            "KexAlgorithms": "curve25519-sha256",
            "HostKeyAlgorithms": "ssh-ed25519",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "LogLevel": "ERROR",
            "ConnectTimeout": "60",
            # The heartbeat is the first watchdog; this is the second.
            "ServerAliveInterval": "30",
            "ServerAliveCountMax": "10",
        }
        words = ["-F", "none", "-p", str(self.port)]
        for name, value in settings.items():
            words += ["-o", f"{name}={value}"]
        return words

    def master(self) -> list[str]:
        """The command that opens the master connection and stays."""
        return ["ssh", "-M", "-N", *self.options(), "127.0.0.1"]

    def command(self, remote: str, *, tty: bool = False) -> list[str]:
        """The command that runs the shell text `remote` in dom0."""
        return ["ssh", "-tt" if tty else "-T", *self.options(),
                "127.0.0.1", remote]  # fmt: skip
