# SPDX-License-Identifier: MIT
"""What pip and a packager make of a checkout: sdist, wheel and editable install, all offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "xenpy", "drivers")
BUILT = {
    "_ffi/_stable", "_ffi/_xenctrl", "drivers/block/_engine", "drivers/block/xenpy-block-worker",
}  # fmt: skip
SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
NOT_THERE = "\nint xenpy_of_no_release(void);\n"

PROBE = """\
import json
from importlib.metadata import entry_points, version
import xenpy
from xenpy._ffi import stable, xenctrl

stable.lib.xenpy_fence()
(block,) = entry_points(group="xenpy.drivers", name="block")
print(json.dumps({
    "xenpy": xenpy.__file__, "version": version("xenpy-toolkit"),
    "module": block.module, "name": block.load().name,
}))
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it without our own paths to xenpy, and without any package index."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240,
        env={**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "XENPY_WERROR": "1"},
    )  # fmt: skip


def succeed(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel_of(source: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """`pip wheel` of a tree or an sdist into `directory`, with the setuptools that is here."""
    directory.mkdir()
    return run(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", source,
        "-w", directory, cwd=directory,
    )  # fmt: skip


def copy(top: Path) -> Path:
    """What a package is made of, in a tree of its own that may be written to."""
    top.mkdir()
    left_out = shutil.ignore_patterns(
        "__pycache__", "*.so", "*.o", "*-worker", "_stable.c", "_xenctrl.c", "_engine.c"
    )
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, top / name, symlinks=True, ignore=left_out)
        else:
            shutil.copy(ROOT / name, top / name)
    return top


def files(package: Path) -> set[str]:
    """The files below `package`, those behind a link to a directory too, without bytecode."""
    return {
        os.path.relpath(os.path.join(directory, name), package)
        for directory, _, names in os.walk(package, followlinks=True)
        for name in names
        if not name.endswith(".pyc")
    }


def extensions(names: set[str]) -> set[str]:
    """What was compiled among them: modules, each by its name without a suffix, and programs."""
    return {name.partition(".")[0] for name in names if compiled(name)}


def compiled(name: str) -> bool:
    return name.endswith((".so", "-worker"))


def environment(directory: Path) -> Path:
    """A fresh virtual environment that can import what this one has installed; its Python."""
    succeed(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory.parent)
    site_of(directory).joinpath("outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return directory / "bin" / "python"


def site_of(environment: Path) -> Path:
    (site,) = environment.glob("lib/python*/site-packages")
    return site


def probe(python: Path, neutral: Path) -> dict[str, str]:
    """What the installed package says of itself, asked from a directory without a checkout."""
    answer: dict[str, str] = json.loads(succeed(python, "-c", PROBE, cwd=neutral))
    said = succeed(python.with_name("xenpy"), "--version", cwd=neutral)
    assert said == f"xenpy {answer['version']}\n"
    marks = succeed(python, "-m", "pytest", "--markers", "-p", "xenpy.testing.plugin", cwd=neutral)
    assert marks.count("@pytest.mark.xen: ") == 1
    assert "@pytest.mark.xen: " in succeed(python, "-m", "pytest", "--markers", cwd=neutral)
    assert answer["module"] == "xenpy.drivers.block.driver"
    assert answer["name"] == "block"
    return answer


def test_a_wheel_from_the_sdist_is_the_whole_package(tmp_path: Path) -> None:
    source = copy(tmp_path / "source")
    wanted = files(source / "xenpy")
    # As a developer's tree is: with what the compiler left.  None of it may be packed.
    succeed(sys.executable, "-W", "ignore", "-m", "xenpy._ffi.build", cwd=source)
    assert (source / "xenpy/_ffi/_stable.c").exists()

    succeed(sys.executable, "-c", SDIST, tmp_path, cwd=source)
    (sdist,) = tmp_path.glob("xenpy_toolkit-*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {member.name.partition("/")[2] for member in tar if not member.isdir()}
    assert {name.removeprefix("xenpy/") for name in names if name.startswith("xenpy/")} == wanted

    built = wheel_of(sdist, tmp_path / "wheel")
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "wheel").iterdir()
    python = environment(tmp_path / "fresh")
    succeed(python, "-m", "pip", "install", "--no-deps", wheel, cwd=tmp_path)
    package = site_of(tmp_path / "fresh") / "xenpy"
    assert Path(probe(python, tmp_path)["xenpy"]).parent == package
    found = files(package)
    assert extensions(found) == BUILT
    assert {name for name in found if not compiled(name)} == wanted
    assert os.access(package / "data/block-xenpy", os.X_OK), "libxl executes it"


def test_an_editable_install_is_the_checkout(tmp_path: Path) -> None:
    source = copy(tmp_path / "source")
    python = environment(tmp_path / "fresh")
    succeed(
        python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", source,
        cwd=tmp_path,
    )  # fmt: skip
    assert Path(probe(python, tmp_path)["xenpy"]).parent == source / "xenpy"
    assert not (site_of(tmp_path / "fresh") / "xenpy").exists()

    # Built by hand afterwards, the extensions replace those of pip and do not lie beside them.
    by_pip = {name for name in files(source / "xenpy") if name.endswith(".so")}
    (source / f"xenpy/_ffi/_stable{EXTENSION_SUFFIXES[0]}").touch()
    succeed(python, "-W", "ignore", "-m", "xenpy._ffi.build", cwd=source)
    assert {name for name in files(source / "xenpy") if name.endswith(".so")} == by_pip
    probe(python, tmp_path)


def test_without_libxenctrl_all_else_is_built(tmp_path: Path) -> None:
    source = copy(tmp_path / "source")
    with (source / "xenpy/_ffi/xenctrl.h").open("a") as cdef:
        cdef.write(NOT_THERE)
    built = wheel_of(source, tmp_path / "wheel")
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "wheel").iterdir()
    shutil.unpack_archive(wheel, tmp_path / "unpacked", "zip")
    assert extensions(files(tmp_path / "unpacked/xenpy")) == BUILT - {"_ffi/_xenctrl"}

    out = tmp_path / "by-hand"
    done = run(sys.executable, "-W", "ignore", "-m", "xenpy._ffi.build", out, cwd=source)
    assert done.returncode == 0, done.stderr
    assert "xenpy._ffi._xenctrl does not compile and is left out" in done.stderr
    assert extensions(files(out / "xenpy")) == BUILT - {"_ffi/_xenctrl"}


@pytest.mark.parametrize("how", ["pip", "by hand"])
def test_without_the_stable_libraries_there_is_no_package(how: str, tmp_path: Path) -> None:
    source = copy(tmp_path / "source")
    with (source / "xenpy/_ffi/stable.h").open("a") as cdef:
        cdef.write(NOT_THERE)
    if how == "pip":
        done = wheel_of(source, tmp_path / "wheel")
    else:
        done = run(sys.executable, "-m", "xenpy._ffi.build", tmp_path / "wheel", cwd=source)
    assert done.returncode != 0
    assert "xenpy_of_no_release" in done.stdout + done.stderr
    assert not list((tmp_path / "wheel").rglob("*.whl"))
    assert not list((tmp_path / "wheel").rglob("*.so"))
