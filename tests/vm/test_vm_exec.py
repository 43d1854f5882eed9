# SPDX-License-Identifier: MIT
"""`xenvm exec` in pristine machines: exact statuses, clean streams, and no long faces.

Whatever happens to the machine or to us, the command ends soon and says why.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import HARNESS, ROOT, Xenvm, is_alive, qemu_of, wait_until

SLEEP = "echo ready; sleep 600"


@pytest.mark.parametrize(("release", "version"), [("trixie", "4.20."), ("bookworm", "4.17.")])
def test_a_real_xen_answers(xenvm: Xenvm, release: str, version: str) -> None:
    text = xenvm.output("exec", "--fresh", "--release", release, "--", "xl", "info")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in fields.items()}
    assert facts["xen_version"].startswith(version)
    assert {"pv", "hvm"} <= set(facts["virt_caps"].split())


def test_streams_and_status_pass_through(xenvm: Xenvm) -> None:
    data = bytes(range(256)) * 400
    done = xenvm.run("exec", "--fresh", "--", "sh", "-c", "cat; echo oops >&2; exit 7", data=data)
    assert done.returncode == 7
    assert done.stdout == data
    assert [line for line in done.stderr.splitlines() if not line.startswith(b"xenvm: ")] == [
        b"oops"
    ]
    assert b"xenvm: error" not in done.stderr


def test_fresh_machines_see_nothing_of_each_other(xenvm: Xenvm) -> None:
    script = "cat /root/trace; xenstore-read /tool/trace; echo x > /root/trace; sync; "
    script += "xenstore-write /tool/trace x; ls /srv/xenpy | wc -l"
    for _ in range(2):
        done = xenvm.run("exec", "--fresh", "--", script)
        assert done.returncode == 0
        assert done.stdout == b"1\n"


def test_a_fresh_machine_has_this_checkout_and_not_the_snapshot_s(
    xenvm: Xenvm, tmp_path: Path
) -> None:
    """Only what differs is sent: files that are other, new, or gone since."""
    copy = tmp_path / "xenpy"
    products = shutil.ignore_patterns(".*", "__pycache__", "*.so", "*.o", "xenpy-*-worker", "build")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=products)
    with (copy / "xenpy/types.py").open("a") as file:
        file.write("CHANGED = 1\n")
    (copy / "xenpy/added.py").write_text("NEW = 1\n")
    (copy / "README.md").unlink()
    (copy / "docs/howto/xor.py").unlink()
    listing = "find . -type f | LC_ALL=C sort | xargs sha256sum"
    here = subprocess.check_output(listing, shell=True, cwd=copy, text=True).splitlines()
    done = subprocess.run(
        [copy / "vagrant/xenvm", "exec", "--fresh", "--", listing],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    there = [line for line in done.stdout.splitlines() if not line.endswith((".so", "-worker"))]
    assert there == here
    assert len(there) < len(done.stdout.splitlines()), "what was built is there as well"
    assert "./xenpy/added.py" in done.stdout
    assert "  ./README.md" not in done.stdout


def test_two_machines_at_a_time(xenvm: Xenvm) -> None:
    words = ("exec", "--fresh", "--", SLEEP)
    with xenvm.started(*words) as one, xenvm.started(*words) as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        assert qemu_of(one.pid) != qemu_of(other.pid)


def test_a_time_out_is_the_harness_s(xenvm: Xenvm) -> None:
    done = xenvm.run("exec", "--fresh", "--timeout", "1", "--", "sleep", "600", timeout=120)
    assert done.returncode == HARNESS
    assert b"xenvm: error: timed out after 1 s: sleep 600" in done.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_the_machine_dies_with_its_command(
    xenvm: Xenvm, number: signal.Signals, status: int
) -> None:
    with xenvm.started("exec", "--fresh", "--", SLEEP) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        qemu = qemu_of(process.pid)
        process.send_signal(number)
        assert process.wait(20) == status
        wait_until(lambda: not is_alive(qemu))


def dies(xenvm: Xenvm, *words: str) -> str:
    """What is said when the command's machine dies."""
    began = time.monotonic()
    done = xenvm.run("exec", "--fresh", *words, timeout=120)
    assert time.monotonic() - began < 90
    assert done.returncode == HARNESS
    return done.stderr.decode()


def test_a_killed_machine_is_told_from_a_failed_command(xenvm: Xenvm) -> None:
    with xenvm.started("exec", "--fresh", "--", SLEEP) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(qemu_of(process.pid), signal.SIGKILL)
        assert process.wait(20) == HARNESS
        said = process.stderr.read().decode()
    assert "xenvm: error: QEMU was killed by SIGKILL" in said
    assert "out-of-memory killer" in said


def test_a_panic_is_told_with_the_console(xenvm: Xenvm, tmp_path: Path) -> None:
    kept = tmp_path / "console.log"
    said = dies(xenvm, "--save-console", str(kept), "--", "echo c > /proc/sysrq-trigger; sleep 600")
    assert "xenvm: error: dom0's kernel panicked" in said
    assert "  | " in said
    assert "sysrq triggered crash" in kept.read_text(errors="replace")


def test_a_machine_that_switches_itself_off(xenvm: Xenvm) -> None:
    assert "xenvm: error: the machine switched itself off" in dies(
        xenvm, "--", "poweroff -f; sleep 600"
    )


def test_a_silent_dom0_is_ended(xenvm: Xenvm) -> None:
    said = dies(xenvm, "--watchdog", "5", "--", "pkill -STOP -f xenvm/heartbeat; sleep 600")
    assert "dom0 has not answered for " in said
    assert "--watchdog SECONDS" in said


def test_no_disk_space_is_said_at_once(xenvm: Xenvm, tmp_path: Path) -> None:
    # A small file system that only this command sees.
    script = 'mount -t tmpfs -o size=64m none "$0" && XENVM_CACHE="$0" exec "$@"'
    private = ["unshare", "--mount"]
    if os.geteuid() != 0:
        private += ["--user", "--map-root-user"]
    done = subprocess.run(
        [*private, "sh", "-c", script, tmp_path, *xenvm.command("exec", "--", "true")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == HARNESS
    assert "xenvm: error: no disk space: " in done.stderr
    assert "xenvm: hint: free some space, or set XENVM_CACHE" in done.stderr


@pytest.mark.long
@pytest.mark.alone
def test_a_warm_start_takes_seconds(xenvm: Xenvm) -> None:
    times: list[float] = []
    for _ in range(5):
        began = time.monotonic()
        assert xenvm.run("exec", "--fresh", "--", "true").returncode == 0
        times.append(time.monotonic() - began)
    assert min(times) <= 5.0, times


@pytest.mark.slow
def test_instructions_are_counted(xenvm: Xenvm) -> None:
    import json

    def count(turns: int) -> list[int]:
        code = f"sum(range({turns}))"
        text = xenvm.output("bench", "--json", "--rounds", "3", "--", "python3", "-c", code)
        found: list[int] = json.loads(text)["instructions"]
        assert len(found) == 3
        return found

    short, tall = count(1000), count(3_000_000)
    # A turn of that loop is some tens of instructions, under any Python.
    assert 10 < (min(tall) - min(short)) / 3_000_000 < 1000
    assert max(tall) < 1.2 * min(tall)
