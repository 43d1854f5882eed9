# SPDX-License-Identifier: MIT
"""The command line without Xen: what it accepts, its exit statuses, attach and detach."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xenpy
from conformance.store_thread import PATIENCE, StoreThread
from xenpy.cli.main import EXIT_FAILED, EXIT_NO_XEN, EXIT_USAGE, main
from xenpy.device_nodes import REFRESH, REFRESH_ERROR, REFRESHED
from xenpy.service import claim_kind
from xenpy.store_pyxs import Op
from xenpy.types import DomId

FRONTEND = "/local/domain/7/device/vbd/51712"
BACKEND = "/local/domain/0/backend/vbd3/7/51712"
DISK = ("block", "7", "vdev=xvda")


@pytest.fixture
def store() -> Iterator[StoreThread]:
    """A xenstored that knows domain 7."""
    with StoreThread() as store:
        store.ask(lambda fake: fake.introduce(DomId(7)))
        yield store


def nodes(store: StoreThread) -> set[str]:
    """The directories of devices that are there."""
    return store.ask(
        lambda fake: {path for path in fake.tree.nodes if "/backend/" in path or "/device/" in path}
    )


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    "verb",
    [
        [], ["serve"], ["attach"], ["detach"], ["block"], ["block", "info"], ["block", "read"],
        ["block", "write"], ["block", "bench"], ["block", "resize"], ["vchan"],
        ["vchan", "listen"], ["vchan", "connect"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_says_how_it_is_used(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: {' '.join(['xenpy', *verb])} ")
    assert "example" in said.out
    assert said.err == ""


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"xenpy {xenpy.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["serve", "block", "--kind", "../../etc"],
        ["serve", "block", "--kind", ""],
        ["serve", "block", "-v", "-q"],
        ["attach", "block"],
        ["attach", "block", "web"],
        ["attach", "block", "-1"],
        ["attach", "block", "32752"],
        ["attach", "block", "٣"],
        ["attach", "block", "7", "--backend", "web"],
        ["attach", "block", "7", "--timeout", "soon"],
        ["attach", "block", "7", "--timeout", "0"],
        ["attach", "block", "7", "--timeout", "nan"],
        ["attach", "block", "7", "--timeout", "inf"],
        ["attach", "block", "7", "--kind", "a/b"],
        ["attach", "block", "7", "--force"],
        ["detach", "block", "7", "--frobnicate"],
        ["block"],
        ["block", "read"],
        ["block", "read", "xvda", "--offset", "-1"],
        ["block", "read", "xvda", "--length", "1KB"],
        ["block", "read", "xvda", "--offset", "٣"],
        ["block", "bench", "xvda", "--op", "trim"],
        ["block", "info", "xvda", "--queues", "two"],
        ["block", "info", "xvda", "--timeout", "0"],
        ["vchan", "listen", "3"],
        ["vchan", "listen", "web", "data/x"],
        ["vchan", "connect", "0", "data/x", "--linger", "long"],
        ["vchan", "connect", "0", "data/x", "--timeout", "-1"],
        ["vchan", "connect", "0", "data/x", "--left", "1K"],
    ],
    ids=" ".join,
)
def test_an_argument_that_makes_no_sense_is_wrong_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == EXIT_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert "usage: xenpy" in said.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["serve", "blokc"], r"no driver 'blokc'; there are: .*block"),
        (["attach", "blokc", "7"], r"no driver 'blokc'"),
        (["serve", "block", "force"], r"'force' is not key=value"),
        (["serve", "block", "speed=11"], r"block has no option 'speed'.*It takes force: "),
        (["serve", "block", "-v", "speed=11"], r"block has no option 'speed'"),
        (["attach", "block", "7", "vdev=xvda", "-q", "mode=x"], r"mode is 'x'"),
        (["serve", "block", "direct=yes"], r"direct is 'yes'; give 0 or 1"),
        (["serve", "block", "--filter", "slow"], r"no filter 'slow'; there are cow, delay"),
        (["serve", "block", "--filter", "stats", "--filter", "log"], r"log: path is ''; give "),
        (["serve", "block", "filter=stats", "--filter", "stats"], r"are the same: give one"),
        (["attach", "block", "7", "vdev=xvda", "filter=delay,red=1"], r"it takes read, write"),
        (["attach", "block", "7"], r"vdev=xvda"),
        (["attach", "block", "7", "xvda"], r"'xvda' is not key=value"),
        (["attach", "block", "7", "=xvda"], r"'=xvda' is not key=value"),
        (["attach", "block", "7", "vdev=xvda", "vdev=xvdb"], r"vdev is given twice"),
        (["attach", "block", "7", "vdev=xvda", "colour=red"], r"block has no 'colour'; it takes"),
        (["attach", "block", "7", "vdev=eth0"], r"eth0"),
        (["attach", "block", "7", "vdev=xvda", "mode=x"], r"mode is 'x'"),
        (["detach", "block", "7", "vdev=xvda", "device-type=tape"], r"device-type is 'tape'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_that_makes_no_sense_is_wrong_usage(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == EXIT_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("xenpy: ")
    assert re.search(complaint, line)


# ------------------------------------------------------------------ no Xen


@pytest.mark.parametrize("verb", ["serve", "attach", "detach"])
def test_without_a_xenstored_the_status_is_77(
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "nothing"))
    rest = ["block", "--rundir", str(tmp_path)] if verb == "serve" else DISK
    assert main([verb, *rest]) == EXIT_NO_XEN
    said = capsys.readouterr()
    assert said.out == ""
    assert "does xenstored run?" in said.err


def test_on_a_machine_without_xen_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attach", *DISK]) == EXIT_NO_XEN
    assert "is this a Xen domain, does xenstored run?" in capsys.readouterr().err


def test_a_socket_that_nobody_listens_on_is_no_xen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StoreThread() as store:
        stale = Path(store.path).rename(tmp_path / "socket")
    assert main(["detach", *DISK, "--store", str(stale)]) == EXIT_NO_XEN
    assert "ECONNREFUSED" in capsys.readouterr().err


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_as_a_process_ends_with_the_status(tmp_path: Path) -> None:
    done = python("-m", "xenpy.cli", "attach", *DISK, "--store", str(tmp_path / "none"))
    assert done.returncode == EXIT_NO_XEN
    assert done.stdout == ""
    assert done.stderr.startswith("xenpy: [ENOENT] connect(")


@pytest.mark.parametrize("verb", ["serve", "attach"])
def test_without_the_c_part_it_says_how_to_build_it(verb: str) -> None:
    code = (
        "import sys\n"
        "sys.modules['xenpy._ffi._stable'] = None\n"
        "from xenpy.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = python("-c", code, verb, *(DISK if verb == "attach" else ["block"]))
    assert done.returncode == EXIT_NO_XEN, done.stderr
    assert done.stderr.startswith("xenpy: xenpy's C part cannot be loaded")
    assert "python3 -m xenpy._ffi.build" in done.stderr


# ------------------------------------------------------------------ drivers of others

PLUGIN = """\
from xenpy.attach import DevicePlan
from xenpy.driver import Driver
from xenpy.types import DevId

def plan(words, kind):
    if "boom" in words:
        raise ValueError("no boom, please")
    return DevicePlan("toy", kind, DevId(0), {"colour": words.get("colour", "red")}, {})

DRIVER = Driver("toy", "toy-kind", "a toy", lambda context: None, {}, plan)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution that brings drivers, installed as pip would.  Its module is returned."""
    info = tmp_path / "toy_drivers-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: toy-drivers\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text(
        "[xenpy.drivers]\n"
        "toy = toy_driver_under_test:DRIVER\n"
        "unmade = toy_driver_under_test:MISSING\n"
        "path = pathlib:Path\n"
    )
    module = tmp_path / "toy_driver_under_test.py"
    module.write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_driver_under_test", raising=False)
    return module


def test_a_driver_of_another_distribution_is_found(
    toy: Path, store: StoreThread, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = "/local/domain/0/backend/toy-kind/7/0"
    served = store.start_backend(backend)
    assert main(["attach", "toy", "7", "colour=blue", "--store", store.path]) == 0
    assert capsys.readouterr().out == "toy-kind/7/0\n"
    assert store.ask(lambda fake: fake.read(f"{backend}/colour")) == "blue"
    assert main(["detach", "toy", "7", "--store", store.path]) == 0
    served.result(PATIENCE)


DIMMER = str(Path(__file__).parents[2] / "docs/howto/dimmer.py")
DIMMED = "/local/domain/0/backend/dimmer/7/1"


def test_settings_are_given_and_given_again(
    store: StoreThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = store.start_backend(DIMMED)
    device = [DIMMER, "7", "devid=1", "--store", store.path]
    assert main(["attach", *device, "max-level=20"]) == 0
    assert store.ask(lambda fake: fake.read(f"{DIMMED}/max-level")) == "20"
    capsys.readouterr()
    answered(store, monkeypatch, "", DIMMED, "token max-level")
    assert main(["reconfigure", *device, "max-level=30"]) == 0
    assert capsys.readouterr().out == "dimmer/7/1: max-level=30\n"
    assert store.ask(lambda fake: fake.read(f"{DIMMED}/{REFRESH}")) == "token max-level"
    assert main(["reconfigure", *device, "max-level=30", "--json"]) == 0
    said = {"backend": DIMMED, "settings": {"max-level": "30"}}
    assert json.loads(capsys.readouterr().out) == said
    answered(store, monkeypatch, "a lamp has 100 levels", DIMMED, "token max-level")
    assert main(["reconfigure", *device, "max-level=101"]) == EXIT_FAILED
    assert capsys.readouterr().err == "xenpy: a lamp has 100 levels\n"
    assert store.ask(lambda fake: fake.read(f"{DIMMED}/max-level")) == "30"
    assert main(["detach", *device]) == 0
    served.result(PATIENCE)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([DIMMER, "7"], "no setting to change is given; there is: max-level=..."),
        ([DIMMER, "7", "devid=1"], "no setting to change is given; there is: max-level=..."),
        ([DIMMER, "7", "speed=1"], "dimmer takes devid=N, max-level=..., and no 'speed'"),
        (["block", "7", "vdev=xvda"], "no setting to change is given; block has none"),
    ],
)
def test_settings_that_there_are_not(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconfigure", *words]) == EXIT_USAGE
    assert capsys.readouterr().err == f"xenpy: {complaint}\n"


@pytest.mark.parametrize("base", ["StreamBackend", "Backend[Record, Record]"])
def test_a_setting_that_is_called_as_something_else(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "StreamProtocol('odd')" if "Stream" in base else "RingProtocol('odd', Record, Record)"
    file = tmp_path / "odd.py"
    file.write_text(
        "from typing import NamedTuple\n"
        "from xenpy import Backend, RingProtocol, StreamBackend, StreamProtocol\n"
        "from xenpy.wire import i16, u64\n"
        "class Record(NamedTuple):\n    id: u64\n    status: i16\n"
        f"class Odd({base}):\n    protocol = {kind}\n    settings = {{'state': 'of mind'}}\n"
    )
    assert main(["attach", str(file), "7"]) == EXIT_FAILED
    complaint = f"xenpy: Odd of {file}: a setting cannot be called 'state'\n"
    assert capsys.readouterr().err == complaint


def test_an_unknown_driver_is_answered_with_those_that_are_there(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "tyo"]) == EXIT_USAGE
    assert capsys.readouterr().err == (
        "xenpy: no driver 'tyo'; there are: block, console, path, toy, unmade\n"
    )


def test_a_driver_refuses_a_word_as_wrong_usage(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attach", "toy", "7", "boom=1"]) == EXIT_USAGE
    assert capsys.readouterr().err == "xenpy: no boom, please\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named"),
        ("raise ValueError('bad day')", "ValueError: bad day"),
        ("DRIVER = (", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: "),
    ],
)
@pytest.mark.parametrize("verb", [["serve", "toy"], ["attach", "toy", "7"]], ids=" ".join)
def test_a_driver_that_cannot_be_imported_is_a_failure_and_no_traceback(
    toy: Path, source: str, reason: str, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write_text(source)
    assert main(verb) == EXIT_FAILED
    said = capsys.readouterr().err
    assert said.startswith("xenpy: the driver 'toy' of toy-drivers cannot be loaded from toy_")
    assert reason in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "reason"),
    [("unmade", "AttributeError: "), ("path", "not a xenpy.driver.Driver")],
)
def test_an_entry_point_that_is_no_driver_is_a_failure(
    toy: Path, name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", name]) == EXIT_FAILED
    assert reason in capsys.readouterr().err


def test_a_value_error_elsewhere_is_a_bug_and_not_called_wrong_usage(
    store: StoreThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("xenpy.cli.attach.attach", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["attach", *DISK, "--store", store.path])


# ------------------------------------------------------------------ block resize


def answered(
    store: StoreThread, monkeypatch: pytest.MonkeyPatch, error: str,
    backend: str = BACKEND, asked: str = "token",
) -> None:  # fmt: skip
    """A backend that has answered what will be asked."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "token")
    for key, value in ((REFRESHED, asked), (REFRESH_ERROR, error), ("sectors", "4096")):
        store.ask(lambda fake, key=key, value=value: fake.write(f"{backend}/{key}", value))


def test_a_resize_is_asked_for_and_the_new_size_told(
    store: StoreThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(store, monkeypatch, "")
    words = ["block", "resize", "7", "vdev=xvda", "--store", store.path]
    assert main(words) == 0
    assert capsys.readouterr().out == "4096 sectors\n"
    assert store.ask(lambda fake: fake.get(f"{BACKEND}/{REFRESH}")) == "token"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"backend": BACKEND, "sectors": 4096}


def test_a_resize_that_fails_says_why(
    store: StoreThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["block", "resize", "7", "vdev=xvda", "--timeout", "0.2", "--store", store.path]
    before = nodes(store)
    assert main(words) == EXIT_FAILED
    assert capsys.readouterr().err == f"xenpy: there is no device {BACKEND}\n"
    assert nodes(store) == before
    answered(store, monkeypatch, "the image is empty")
    assert main(words) == EXIT_FAILED
    assert capsys.readouterr().err == "xenpy: the image is empty\n"
    store.ask(lambda fake: fake.write(f"{BACKEND}/{REFRESHED}", "another"))
    assert main(words) == EXIT_FAILED
    assert "no backend answered within 0.2 s" in capsys.readouterr().err


# ------------------------------------------------------------------ attach and detach


def test_attach_makes_the_nodes_that_libxl_makes_and_detach_removes_them(
    store: StoreThread, capsys: pytest.CaptureFixture[str]
) -> None:
    before = nodes(store)
    served = store.start_backend(BACKEND)
    options = ["--store", store.path]
    assert main(["attach", *DISK, "target=disk.img", "mode=r", *options]) == 0
    assert capsys.readouterr().out == "vbd3/7/51712\n"
    made = store.ask(
        lambda fake: {
            path: (node.value.decode(), str(node.perms))
            for path, node in fake.tree.nodes.items()
            if path.startswith((FRONTEND, BACKEND))
        }
    )
    values = {path: value for path, (value, _) in made.items()}
    assert values == {
        BACKEND: "",
        f"{BACKEND}/frontend": FRONTEND,
        f"{BACKEND}/frontend-id": "7",
        f"{BACKEND}/online": "1",
        f"{BACKEND}/xenpy-attached": "1",
        f"{BACKEND}/dev": "xvda",
        f"{BACKEND}/mode": "r",
        f"{BACKEND}/device-type": "disk",
        f"{BACKEND}/type": "tap",
        f"{BACKEND}/removable": "0",
        f"{BACKEND}/discard-enable": "0",
        f"{BACKEND}/params": f"aio:{Path('disk.img').absolute()}",
        f"{BACKEND}/state": "2",
        f"{BACKEND}/hotplug-error": "",
        f"{BACKEND}/hotplug-status": "connected",
        FRONTEND: "",
        f"{FRONTEND}/backend": BACKEND,
        f"{FRONTEND}/backend-id": "0",
        f"{FRONTEND}/state": "1",
        f"{FRONTEND}/virtual-device": "51712",
        f"{FRONTEND}/device-type": "disk",
    }
    assert {perms for path, (_, perms) in made.items() if path.startswith(FRONTEND)} == {"n7,r0"}
    assert {perms for path, (_, perms) in made.items() if path.startswith(BACKEND)} == {"n0,r7"}
    assert main(["detach", *DISK, *options]) == 0
    assert capsys.readouterr().out == ""
    served.result(PATIENCE)
    assert nodes(store) - before <= {
        "/local/domain/0/backend",
        "/local/domain/0/backend/vbd3",
        "/local/domain/7/device/vbd",
    }


def test_json_tells_the_two_ends(store: StoreThread, capsys: pytest.CaptureFixture[str]) -> None:
    served = store.start_backend(BACKEND)
    options = ["--json", "--store", store.path]
    assert main(["attach", *DISK, *options]) == 0
    assert json.loads(capsys.readouterr().out) == {"frontend": FRONTEND, "backend": BACKEND}
    assert main(["detach", *DISK, *options]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": BACKEND}
    served.result(PATIENCE)


def test_if_nobody_serves_the_kind_the_nodes_are_removed_again(
    store: StoreThread, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--timeout", "0.2", "--store", store.path]
    assert main(["attach", *DISK, *options]) == EXIT_FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert "no backend answered within 0.2 s: does a daemon serve vbd3?" in said.err
    assert not [path for path in nodes(store) if path.startswith((FRONTEND, BACKEND))]
    served = store.start_backend(BACKEND)
    assert main(["attach", *DISK, "--store", store.path]) == 0, "and the next attempt may succeed"
    assert main(["detach", *DISK, "--store", store.path]) == 0
    served.result(PATIENCE)


def test_what_the_backend_refuses_is_told_and_removed_again(
    store: StoreThread, capsys: pytest.CaptureFixture[str]
) -> None:
    served = store.start_backend(BACKEND, error="the image is in use")
    assert main(["attach", *DISK, "--store", store.path]) == EXIT_FAILED
    assert capsys.readouterr().err == "xenpy: the image is in use\n"
    served.result(PATIENCE)
    assert not [path for path in nodes(store) if path.startswith((FRONTEND, BACKEND))]


def test_a_refusal_by_a_backend_that_does_not_close_keeps_its_reason(
    store: StoreThread, capsys: pytest.CaptureFixture[str]
) -> None:
    served = store.start_backend(BACKEND, error="the image is in use", stuck=True)
    options = ["--timeout", "1", "--store", store.path]
    assert main(["attach", *DISK, *options]) == EXIT_FAILED
    said = capsys.readouterr().err
    assert said == f"xenpy: the image is in use; it does not close, {BACKEND} is left\n"
    served.cancel()


def test_a_domain_that_is_not_there_gets_no_device(
    store: StoreThread, capsys: pytest.CaptureFixture[str]
) -> None:
    before = nodes(store)
    words = ["block", "8", "vdev=xvda", "--store", store.path]
    assert main(["attach", *words]) == EXIT_FAILED
    assert capsys.readouterr().err == "xenpy: there is no domain 8\n"
    assert nodes(store) == before


@pytest.mark.parametrize("there", [FRONTEND, BACKEND])
def test_a_device_that_is_there_is_left_alone(
    store: StoreThread, there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.ask(lambda fake: fake.write(f"{there}/state", "4"))
    before = nodes(store)
    assert main(["attach", *DISK, "--store", store.path]) == EXIT_FAILED
    assert capsys.readouterr().err == f"xenpy: {there} exists already\n"
    assert nodes(store) == before


def test_what_is_not_attached_cannot_be_detached(
    store: StoreThread, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detach", *DISK, "--json", "--store", store.path]) == EXIT_FAILED
    said = capsys.readouterr()
    assert said.err == f"xenpy: there is no device {BACKEND}\n"
    assert json.loads(said.out) == {"error": f"there is no device {BACKEND}", "errno": None}


def test_a_backend_that_does_not_close_keeps_its_nodes(
    store: StoreThread, capsys: pytest.CaptureFixture[str]
) -> None:
    served = store.start_backend(BACKEND, stuck=True)
    options = ["--timeout", "1", "--store", store.path]
    assert main(["attach", *DISK, *options]) == 0
    capsys.readouterr()
    assert main(["detach", *DISK, "--json", *options]) == EXIT_FAILED
    said = capsys.readouterr()
    assert json.loads(said.out)["errno"] == "ETIMEDOUT"
    assert said.err.startswith("xenpy: [ETIMEDOUT] ")
    assert {FRONTEND, BACKEND} <= nodes(store)
    assert store.ask(lambda fake: fake.read(f"{BACKEND}/online")) == "0"
    served.cancel()


def test_a_device_that_nobody_took_up_is_detached_at_once(store: StoreThread) -> None:
    for path in (FRONTEND, BACKEND):
        store.ask(lambda fake, path=path: fake.write(f"{path}/state", "1"))
    assert main(["detach", *DISK, "--store", store.path]) == 0
    assert not [path for path in nodes(store) if path.startswith((FRONTEND, BACKEND))]


def test_force_takes_the_frontend_away_before_the_backend_closes(store: StoreThread) -> None:
    served = store.start_backend(BACKEND, stuck=True)
    options = ["--timeout", "1", "--store", store.path]
    assert main(["attach", *DISK, *options]) == 0
    assert main(["detach", "--force", *DISK, *options]) == EXIT_FAILED
    assert FRONTEND not in nodes(store)
    assert BACKEND in nodes(store)
    served.cancel()


def test_a_node_that_is_missing_later_is_a_failure_and_not_no_xen(
    store: StoreThread, capsys: pytest.CaptureFixture[str]
) -> None:
    store.ask(lambda fake: fake.inject(errno.ENOENT, op=Op.IS_DOMAIN_INTRODUCED))
    assert main(["attach", *DISK, "--store", store.path]) == EXIT_FAILED
    assert "[ENOENT] is_domain_introduced(domid=7)" in capsys.readouterr().err


def test_an_error_as_json_has_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--json", "--store", str(tmp_path / "nothing")]
    assert main(["attach", *DISK, *words]) == EXIT_NO_XEN
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["errno"] == "ENOENT"
    assert said.err == f"xenpy: {answer['error']}\n"


def test_a_store_that_refuses_a_watch_ends_the_daemon_with_its_reason(
    store: StoreThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.ask(lambda fake: fake.inject(errno.ENOSPC, op=Op.WATCH))
    words = ["block", "--rundir", str(tmp_path), "--store", store.path]
    assert main(["serve", *words]) == EXIT_FAILED
    assert "xenpy: [ENOSPC] watch(" in capsys.readouterr().err


def test_a_kind_is_served_by_one_daemon(
    store: StoreThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claim_kind("vbd3", tmp_path):
        words = ["block", "--rundir", str(tmp_path), "--store", store.path]
        assert main(["serve", *words]) == EXIT_FAILED
    said = capsys.readouterr().err
    assert f"backend kind 'vbd3' is already served by process {os.getpid()}" in said
