# SPDX-License-Identifier: MIT
"""What differs between what dom0 has of xenpy and what it is to have."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from xenpy.vm.build import pack_built
from xenpy.vm.checkout import Checkout
from xenpy.vm.pushed import GONE_LIMIT, NOTHING, Pushed


def checkout(root: Path) -> Checkout:
    for name, text in {"pyproject.toml": "[project]\n", "a.py": "a", "b/c.py": "c"}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "link").symlink_to("b")
    return Checkout.scan(root)


def built(root: Path) -> Path:
    (root / "xenpy/_ffi").mkdir(parents=True)
    for name in ("xenpy/_ffi/_one.so", "xenpy/_ffi/_two.so"):
        (root / name).write_text(name)
    return root


def test_of_nothing_everything_differs(tmp_path: Path) -> None:
    wanted = Pushed.of(checkout(tmp_path), None)
    assert NOTHING.changed(wanted) == {"pyproject.toml", "a.py", "b/c.py", "link"}
    assert NOTHING.gone(wanted) == []


def test_what_is_other_new_and_gone(tmp_path: Path) -> None:
    before = Pushed.of(checkout(tmp_path), None)
    (tmp_path / "a.py").write_text("other")
    (tmp_path / "d.py").write_text("new")
    (tmp_path / "b/c.py").unlink()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("elsewhere")
    wanted = Pushed.of(Checkout.scan(tmp_path), None)
    assert before.changed(wanted) == {"a.py", "d.py", "link"}
    assert before.gone(wanted) == ["b/c.py"]


def test_a_file_is_other_as_a_program_and_the_same_at_another_time(tmp_path: Path) -> None:
    before = Pushed.of(checkout(tmp_path), None)
    os.utime(tmp_path / "a.py", (1, 1))
    assert before.changed(Pushed.of(Checkout.scan(tmp_path), None)) == set()
    (tmp_path / "a.py").chmod(0o755)
    assert before.changed(Pushed.of(Checkout.scan(tmp_path), None)) == {"a.py"}
    (tmp_path / "a.py").unlink()
    (tmp_path / "a.py").symlink_to("a")
    assert before.changed(Pushed.of(Checkout.scan(tmp_path), None)) == {"a.py"}


def test_what_was_built_is_told_apart_file_by_file(tmp_path: Path) -> None:
    files, products = checkout(tmp_path / "files"), built(tmp_path / "built")
    before = Pushed.of(files, products)
    (products / "xenpy/_ffi/_two.so").write_text("again")
    changed = before.changed(Pushed.of(files, products))
    assert changed == {"xenpy/_ffi/_two.so"}
    with tarfile.open(fileobj=io.BytesIO(pack_built(products, changed))) as tar:
        assert tar.getnames() == ["xenpy/_ffi/_two.so"]


def test_a_program_that_has_two_names_is_not_gone(tmp_path: Path) -> None:
    files, products = checkout(tmp_path / "files"), tmp_path / "built"
    (products / "xenpy/drivers/block").mkdir(parents=True)
    (products / "xenpy/drivers/block/xenpy-block-worker").touch()
    wanted = Pushed.of(files, products)
    before = Pushed({**wanted.files, "drivers/block/xenpy-block-worker": "a host's", "d.py": ""})
    assert before.gone(wanted) == ["d.py"]


def test_it_is_kept(tmp_path: Path) -> None:
    pushed = Pushed.of(checkout(tmp_path / "files"), None)
    pushed.save(tmp_path / "pushed.json")
    assert Pushed.load(tmp_path / "pushed.json") == pushed
    assert Pushed.load(tmp_path / "other.json") == NOTHING


def test_too_many_names_are_not_named() -> None:
    many = Pushed({f"{number}": "" for number in range(GONE_LIMIT + 1)})
    assert many.gone(NOTHING) is None
    assert len(many.gone(Pushed({"0": ""})) or []) == GONE_LIMIT
