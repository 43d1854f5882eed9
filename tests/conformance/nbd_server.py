# SPDX-License-Identifier: MIT
"""qemu-nbd, which the NBD store is tested against, and libnbd for a virtual environment."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["PATIENCE", "QemuNbd", "have_libnbd"]

PATIENCE = 60.0
DIST_PACKAGES = "/usr/lib/python3/dist-packages"
"""Where Debian's python3-libnbd is; a virtual environment does not look there."""


def have_libnbd() -> None:
    """Make `import nbd` work: in a virtual environment, with Debian's, and nothing else of it."""
    if importlib.util.find_spec("nbd") is not None:
        return
    for name in ("libnbdmod", "nbd"):
        spec = PathFinder.find_spec(name, [DIST_PACKAGES])
        assert spec is not None, f"no {name} for this Python; Debian: python3-libnbd"
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


class QemuNbd:
    """Serves an image on a Unix socket.  A context manager; ended in the end.

    Args:
        image: a file, or with `image_opts` a description of block drivers.
        path: of the socket where it listens.
        words: more options.
    """

    def __init__(self, image: Path | str, path: Path, *words: str) -> None:
        program = shutil.which("qemu-nbd")
        assert program is not None, "no qemu-nbd; Debian: qemu-utils"
        self.path = path
        command = [program, "--persistent", "--shared=8", "--socket", str(path), *words]
        self.process = subprocess.Popen([*command, str(image)])
        deadline = time.monotonic() + PATIENCE
        while not self._listens():
            assert self.process.poll() is None, f"{command} ended"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _listens(self) -> bool:
        """Its socket is there before anybody listens on it."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        return True

    @property
    def target(self) -> str:
        return f"nbd:unix:{self.path}"

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> QemuNbd:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
