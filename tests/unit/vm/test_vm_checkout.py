# SPDX-License-Identifier: MIT
"""What is pushed into dom0: the checkout, no more, and the same bytes for the same files."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from xenpy.vm.checkout import SIZE_LIMIT, Checkout, find_root

FILES = {
    "pyproject.toml": "[project]\n",
    "xenpy/__init__.py": "",
    "xenpy/_ffi/shim.c": "int x;\n",
    "drivers/block/engine.h": "#define X\n",
    "drivers/block/back.py": "",
    "tests/test_a.py": "",
}


@pytest.fixture(params=["git", "plain"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "xenpy/drivers").symlink_to("../drivers")
    (tmp_path / "xenpy/__pycache__").mkdir()
    (tmp_path / "xenpy/__pycache__/x.pyc").touch()
    (tmp_path / "xenpy/_ffi/_stable.so").touch()
    (tmp_path / "drivers/block/xenpy-block-worker").touch()
    if request.param == "git":
        (tmp_path / ".gitignore").write_text("__pycache__/\n*.so\nxenpy-*-worker\n.gitignore\n")
        for command in (["init", "-q"], ["add", "xenpy"]):
            subprocess.run(["git", "-C", tmp_path, *command], check=True)
    return tmp_path


def test_every_file_and_no_product(root: Path) -> None:
    assert set(Checkout.scan(root).files) == {*FILES, "xenpy/drivers"}


def test_a_removed_file_is_not_pushed(root: Path) -> None:
    (root / "xenpy/__init__.py").unlink()
    assert "xenpy/__init__.py" not in Checkout.scan(root).files


def test_a_large_file_is_left_out_aloud(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (root / "large.bin").open("wb") as file:
        file.truncate(SIZE_LIMIT + 1)
    assert "large.bin" not in Checkout.scan(root).files
    assert "not pushed, larger than 8 MiB: large.bin" in capsys.readouterr().err


def test_the_package_alone_is_built_alike(root: Path) -> None:
    whole = Checkout.scan(root)
    package = whole.package()
    assert set(whole.files) - set(package.files) == {"tests/test_a.py"}
    assert package.c_key() == whole.c_key()


def test_the_package_without_its_source_tree(root: Path) -> None:
    # As when it is installed: other people's packages lie beside it.
    for name in ("pyproject.toml", ".git"):
        subprocess.run(["rm", "-rf", root / name], check=True)
    assert set(Checkout.scan(root).files) == {
        "xenpy/__init__.py", "xenpy/_ffi/shim.c", "xenpy/drivers"
    }  # fmt: skip


def test_the_key_of_an_installed_package_follows_its_drivers_too(tmp_path: Path) -> None:
    # There xenpy/drivers is a directory, not a link.
    engine = tmp_path / "xenpy/drivers/block/engine/ring.h"
    engine.parent.mkdir(parents=True)
    engine.write_text("#define X\n")
    before = Checkout.scan(tmp_path).c_key()
    engine.write_text("#define Y\n")
    assert Checkout.scan(tmp_path).c_key() != before


def test_the_key_follows_the_c_part_only(root: Path) -> None:
    def key() -> str:
        return Checkout.scan(root).c_key()

    before = key()
    (root / "drivers/block/back.py").write_text("x = 1\n")
    (root / "tests/test_b.py").touch()
    assert key() == before
    (root / "drivers/block/engine.h").write_text("#define Y\n")
    changed = key()
    assert changed != before
    (root / "xenpy/_ffi/more.c").touch()
    assert key() != changed


def test_the_tar(root: Path) -> None:
    (root / "xenpy/__init__.py").chmod(0o755)
    checkout = Checkout.scan(root)
    assert checkout.pack() == checkout.pack()
    with tarfile.open(fileobj=io.BytesIO(checkout.pack())) as tar:
        assert sorted(tar.getnames()) == sorted(checkout.files)
        assert tar.getmember("xenpy/drivers").linkname == "../drivers"
        assert tar.getmember("xenpy/__init__.py").mode == 0o755
        assert tar.getmember("pyproject.toml").mode == 0o644
        content = tar.extractfile("xenpy/_ffi/shim.c")
        assert content is not None
        assert content.read() == b"int x;\n"
    with tarfile.open(fileobj=io.BytesIO(checkout.pack(["pyproject.toml"]))) as tar:
        assert tar.getnames() == ["pyproject.toml"]


def test_our_own_root_holds_us() -> None:
    assert (find_root() / "xenpy/vm/checkout.py").is_file()
