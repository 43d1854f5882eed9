# SPDX-License-Identifier: MIT
"""Imports point one way: the layers of docs/design/modules.md, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xenpy

PACKAGE = Path(xenpy.__file__).resolve().parent
LAYERS: list[set[str]] = [
    {"errors", "types"},
    {"_ffi"},
    {"handles"},
    {
        "memory", "gnttab", "evtchn", "calls", "ctrl", "wire", "ring", "ring_protocol", "xenbus",
        "paths", "peer_keys", "words", "shared_byte", "flex_ring", "stream_protocol",
        "ring_keys", "protocol_page", "protocol_text", "grant_dump",
        "trace", "peek",
    },
    {
        "store_wire", "store_pyxs", "store_writer", "store_connection", "store_nodes",
        "store_transaction", "store_wait", "store_watch", "store_insist", "xenstore",
    },
    {"devlog", "runtime", "ports", "byte_stream", "duplex"},
    {"backend"},
    {
        "device_nodes", "device_refresh", "lifecycle", "service", "attach", "driver",
        "frontend_nodes", "frontend", "frontend_life", "suggest", "own_backend", "own_trace",
        "ring_server", "ring_backend", "granted_page",
        "device_list", "device_counters", "process_load", "capture", "passive_tap", "ring_asker",
        "ring_frontend", "stream_backend", "stream_frontend",
    },
    {"drivers"},
    {"control", "metrics", "daemon", "serve_config", "sd_notify", "doctor", "cli"},
]  # fmt: skip
BESIDE = {"testing", "vm", "__init__"}


def layer_of(module: str) -> int:
    """The number of a module's layer, by its first name below xenpy."""
    (found,) = [number for number, names in enumerate(LAYERS) if module in names]
    return found


def imported(path: Path) -> set[str]:
    """The modules of xenpy that a file imports, by their names below xenpy."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("xenpy.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            name = node.module or ""
            if name == "xenpy":
                found |= {f"xenpy.{alias.name}" for alias in node.names}
            elif name.startswith("xenpy."):
                found.add(name)
            assert not name.startswith("drivers"), f"{path}: a top-level `drivers`"
    return {name.removeprefix("xenpy.") for name in found}


def modules() -> list[Path]:
    left_out = {"__pycache__", "data"}
    return sorted(path for path in PACKAGE.rglob("*.py") if not left_out & set(path.parts))


def first_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_module_has_a_layer() -> None:
    known = set.union(*LAYERS) | BESIDE
    assert {first_name(path) for path in modules()} <= known


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_what_is_above_it_only(path: Path) -> None:
    own = first_name(path)
    names = {name.split(".")[0] for name in imported(path)} - {"__version__"}
    if own == "vm":
        assert names <= {"vm"}, "vm is standard library only"
    elif own == "__init__":
        pass  # it names what it will import when asked: the test below
    elif own == "testing":
        assert "cli" not in names
    else:
        assert not names & BESIDE, "the library does not know its tests or its VM"
        for name in names:
            assert layer_of(name) <= layer_of(own), f"{own} imports {name}, which is below it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_bindings_know_cffi(path: Path) -> None:
    own = first_name(path)
    allowed = {
        "_ffi", "memory", "gnttab", "evtchn", "calls", "ctrl", "ring", "shared_byte", "duplex",
        "trace", "peek", "testing",
    }  # fmt: skip
    if any(name.split(".")[0] == "_ffi" for name in imported(path)):
        assert own in allowed
    if own != "_ffi":
        tree = ast.parse(path.read_text())
        direct = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert "cffi" not in direct


def test_the_package_imports_what_is_asked_for_only() -> None:
    code = (
        "import sys, xenpy\n"
        "print([name for name in sys.modules if name.startswith('xenpy.')])\n"
        "print(xenpy.RingProtocol.__name__, 'xenpy.ring_backend' in sys.modules)\n"
        "print(all(getattr(xenpy, name) for name in xenpy.__all__), hasattr(xenpy, 'nothing'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[]", "RingProtocol False", "True False"]


def test_the_vm_harness_needs_the_standard_library_only() -> None:
    code = (
        "import sys, xenpy.vm.cli\n"
        "known = set(sys.stdlib_module_names) | {'xenpy', '__main__', 'site', 'sitecustomize'}\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(name for name in names - known if not name.startswith('_')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_the_library_imports_without_libxenctrl() -> None:
    code = (
        "import sys\n"
        "sys.modules['xenpy._ffi._xenctrl'] = None\n"
        "import xenpy.daemon, xenpy.drivers.block.driver\n"
        "try:\n"
        "    import xenpy.ctrl\n"
        "except ImportError as error:\n"
        "    assert 'libxen-dev' in str(error), error\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(PACKAGE.parent)}
    )
