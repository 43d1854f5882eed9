# SPDX-License-Identifier: MIT
"""The Vagrant box as its users run it: `xenvm box`, `vagrant up`, `vagrant ssh`, `destroy`.

libvirt and Vagrant run in namespaces of their own (network, mounts, processes): the host's
libvirt is not disturbed, no packet leaves, and whatever happens nothing stays.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, Xenvm, is_alive, wait_until

from fences import Command, agrees, commands, fences
from xenpy.vm import host
from xenpy.vm.box import VAGRANT_PACKAGES

PAGE = Path("docs/howto/vagrant.md")

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

SETUP = """
set -e
lab=$1
mount --make-rprivate /
ip link set lo up
mount -t tmpfs -o mode=755 run /run
for name in lib/libvirt log/libvirt cache/libvirt; do
    mkdir -p "$lab/var/$name"
    mount --bind "$lab/var/$name" "/var/$name"
done
mount --bind "$lab/etc" /etc/libvirt
export TMPDIR="$lab/tmp"
virtlogd > "$lab/virtlogd.log" 2>&1 &
libvirtd > "$lab/libvirtd.log" 2>&1 &
until virsh uri > /dev/null 2>&1; do
    kill -0 $! 2> /dev/null || { cat "$lab/libvirtd.log"; exit 1; }
    sleep 0.2
done
echo ready
wait
"""

LIBVIRTD_CONF = """
auth_unix_ro = "none"
auth_unix_rw = "none"
"""

# The machine in the test has no other programs than the test's: nothing to be guarded from.
QEMU_CONF = """
security_driver = "none"
namespaces = []
cgroup_controllers = []
"""


@dataclass(frozen=True)
class Lab:
    """A private libvirt, and the namespaces that it lives in.

    `init` is the process whose end ends them all.
    """

    directory: Path
    init: int

    def run(
        self, *words: str, directory: Path = ROOT / "vagrant", timeout: float = 1800
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in there."""
        environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "tmp"),
            "VAGRANT_HOME": str(self.directory / "home/vagrant.d"),
            "VAGRANT_DOTFILE_PATH": str(self.directory / "project"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_BOX_UPDATE_CHECK_DISABLE": "1",
        }
        enter = ["nsenter", "--target", str(self.init), "--net", "--mount", "--pid"]
        return subprocess.run(
            [*enter, f"--wdns={directory}", "--", *words], env=environment, timeout=timeout,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def output(self, *words: str, directory: Path = ROOT / "vagrant") -> str:
        """What it prints; it must succeed."""
        done = self.run(*words, directory=directory)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def inhabitants(namespace: str) -> list[int]:
    """The processes of this host in a network namespace."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Some end meanwhile; and of the host's own, even root may not see all.
            with suppress(FileNotFoundError, PermissionError):
                if os.readlink(entry / "ns/net") == namespace:
                    found.append(int(entry.name))
    return found


@contextmanager
def private_libvirt(directory: Path) -> Generator[Lab]:
    """libvirtd and virtlogd in namespaces of their own, and nothing left of them."""
    for name in ("etc", "tmp", "home", "project"):
        (directory / name).mkdir()
    (directory / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF)
    (directory / "etc/qemu.conf").write_text(QEMU_CONF)
    command = [
        "setpriv", "--pdeathsig", "KILL", "--",
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
        "sh", "-c", SETUP, "lab", str(directory),
    ]  # fmt: skip
    everyone: list[int] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as outer:
        try:
            assert outer.stdout is not None
            first = outer.stdout.readline()
            assert first == "ready\n", first + outer.stdout.read()
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            (init,) = (int(child) for child in children)
            namespace = os.readlink(f"/proc/{init}/ns/net")
            assert namespace != os.readlink("/proc/self/ns/net")
            yield Lab(directory, init)
            everyone = inhabitants(namespace)
            assert init in everyone
        finally:
            outer.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in everyone))
    assert inhabitants(namespace) == []


@pytest.fixture
def lab(tmp_path: Path) -> Generator[Lab]:
    """A private libvirt whose project is vagrant/Vagrantfile."""
    assert os.geteuid() == 0, "this test needs root: it makes namespaces, and runs libvirtd in them"
    host.ensure_packages([*host.VM_PACKAGES, *VAGRANT_PACKAGES])
    with private_libvirt(tmp_path) as made:
        yield made
    # pytest keeps the directories of the last runs: the logs will do, not the disks.
    for name in ("home", "tmp", "var/lib"):
        shutil.rmtree(tmp_path / name)


def type_in(command: Command, xenvm: Xenvm, lab: Lab, directory: Path) -> str:
    """Run a command of the page; what it prints."""
    words = shlex.split(command.text)
    if words[0] != "vagrant/xenvm":
        return lab.output("sh", "-c", command.text, directory=directory)
    done = subprocess.run(
        xenvm.command(*words[1:]), cwd=directory, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_page_says(xenvm: Xenvm, lab: Lab) -> None:
    """docs/howto/vagrant.md, typed in, and a closer look after some of its commands."""
    looks = {
        "vagrant up": a_real_machine_with_a_key_of_its_own,
        "vagrant ssh -c 'sudo xl list'": a_real_xen,
        "vagrant ssh -c 'cd xenpy": the_checkout_works,
        "vagrant halt": it_switched_itself_off,
    }
    directory = ROOT
    for block in fences(PAGE):
        for command in commands(block) if block.language == "console" else ():
            if command.text.startswith("sudo apt-get"):
                continue  # the fixture has seen to that
            if command.text.startswith("cd "):
                directory /= command.text.removeprefix("cd ")
                continue
            said = type_in(command, xenvm, lab, directory)
            assert agrees(command.shown, said), f"{command}\n{said}"
            for start, look in list(looks.items()):
                if command.text.startswith(start):
                    look(lab)
                    del looks[start]
    assert not looks
    (ROOT / "xenvm.box").unlink()
    assert lab.output("virsh", "list", "--all", "--name").split() == []


def a_real_machine_with_a_key_of_its_own(lab: Lab) -> None:
    (name,) = lab.output("virsh", "list", "--name").split()
    assert "<domain type='qemu'" in lab.output("virsh", "dumpxml", name)
    # The key that everybody has opens the machine no longer.
    keys = lab.output("vagrant", "ssh", "-c", "cat .ssh/authorized_keys")
    assert "ssh-" in keys
    assert "insecure" not in keys


def a_real_xen(lab: Lab) -> None:
    info = lab.output("vagrant", "ssh", "-c", "sudo xl info")
    fields = (line.partition(":") for line in info.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in fields}
    assert facts["xen_version"].startswith("4.20."), facts
    assert "smap=0" in facts["xen_commandline"].split()


def the_checkout_works(lab: Lab) -> None:
    use = "from xenpy.evtchn import EventChannels as E; E().close(); print('opened')"
    said = lab.output("vagrant", "ssh", "-c", f'cd xenpy && sudo python3 -c "{use}"')
    assert said.split() == ["opened"]


def it_switched_itself_off(lab: Lab) -> None:
    (name,) = lab.output("virsh", "list", "--all", "--name").split()
    assert lab.output("virsh", "domstate", name).strip() == "shut off"
    log = (lab.directory / f"var/log/libvirt/qemu/{name}.log").read_text()
    assert log.splitlines()[-1].endswith("reason=shutdown"), "dom0 did not switch itself off"
