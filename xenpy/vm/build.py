# SPDX-License-Identifier: MIT
"""xenpy's C part, built for a release's dom0.

Built natively, in a chroot of the image's tree and against its libraries: under a
second, where a compiler in the emulated machine would take minutes.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Container
from pathlib import Path

from xenpy.vm import namespace, progress
from xenpy.vm.cache import Cache, digest
from xenpy.vm.checkout import Checkout
from xenpy.vm.image import Image

__all__ = ["built_files", "digests", "ensure", "pack_built"]

_SCRIPT = """
cd /mnt/source
PYTHONPATH=/mnt/source PYTHONDONTWRITEBYTECODE=1 TMPDIR=/mnt/output \
    python3 -m xenpy._ffi.build /mnt/output
"""


def ensure(cache: Cache, image: Image, checkout: Checkout) -> Path | None:
    """The directory with the extensions for `image`, built if the C part has changed.

    None if the checkout has no C part at all.
    """
    if "xenpy/_ffi/build.py" not in checkout.files:
        return None
    name = f"{image.tree.parent.name}-{checkout.c_key()}"
    final = cache.root / "build" / name
    if final.is_dir():
        return final
    with cache.locked(f"build-{image.release.name}", "building xenpy's C part"):
        if final.is_dir():
            return final
        log = cache.directory("log") / f"build-{image.release.name}.log"
        log.unlink(missing_ok=True)
        what = f"building xenpy's C part for {image.release.name}"
        with progress.step(what), cache.building(final) as work:
            source = work / ".source"
            source.mkdir()
            _unpack(checkout, source)
            command = namespace.chroot_command(
                image.tree, _SCRIPT, {source: "/mnt/source", work: "/mnt/output"}
            )
            namespace.run(command, what=what, log=log)
            namespace.remove(source)
        cache.sweep(final.parent, [final], limit=8)
    return final


def _unpack(checkout: Checkout, directory: Path) -> None:
    """What the build needs: the whole package, since the builder is one of its modules."""
    names = [
        name for name in checkout.files
        if name.startswith(("xenpy/", "drivers/")) or "/" not in name
    ]  # fmt: skip
    subprocess.run(["tar", "-C", directory, "-xf", "-"], input=checkout.pack(names), check=True)


def built_files(built: Path) -> list[Path]:
    """The extensions, and the programs beside them."""
    return sorted(
        path for path in built.rglob("*") if path.suffix == ".so" or "-worker" in path.name
    )


def digests(built: Path) -> dict[str, str]:
    """What each of them is, by the name that `pack_built` gives it."""
    return {str(path.relative_to(built)): digest(path.read_bytes()) for path in built_files(built)}


def pack_built(built: Path, names: Container[str] | None = None) -> bytes:
    """A tar of them, or of those among `names`, to be unpacked over the checkout in dom0."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in built_files(built):
            info = tarfile.TarInfo(str(path.relative_to(built)))
            if names is not None and info.name not in names:
                continue
            data = path.read_bytes()
            info.size, info.mode, info.mtime = len(data), 0o755, int(path.stat().st_mtime)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
