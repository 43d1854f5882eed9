# SPDX-License-Identifier: MIT
"""Consoles of stock guests, served by xenpy: hvc_xen, xenconsoled and xl are the peers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, XENPY
from conformance.guests import domains
from conformance.typed_page import section, type_in
from fences import ROOT
from xenpy.drivers.console.session import primary
from xenpy.types import DomId
from xenpy.vm import disk

pytestmark = pytest.mark.long

LOGS = Path("/var/log/xen/console")
NO_PASSWORD = b"sed -i 's|^root:x:|root::|' /etc/passwd; echo is s''et\n"
"""Or login would ask for one, which root does not have."""


@contextmanager
def guest(name: str, *options: str) -> Generator[DomId]:
    """A guest with a shell on its console, and nothing else."""
    disk.run("xenvm-guest", "create", name, "--no-network", "--memory", "160", *options)
    try:
        yield DomId(int(disk.domid(name)))
    finally:
        subprocess.run(["xl", "destroy", name], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module", params=["pv", "pvh"])
def talker(request: pytest.FixtureRequest) -> Iterator[tuple[str, DomId]]:
    """A guest of either type, whose shell is up."""
    name = f"talker-{request.param}"
    with guest(name, "--type", request.param) as domid:
        until(lambda: "is up" in log_of(name), lambda: log_of(name))
        type_to(key(domid, "tty"), NO_PASSWORD)
        until(lambda: "is set" in log_of(name), lambda: log_of(name))
        yield name, domid


def log_of(name: str) -> str:
    """What xenconsoled has written down."""
    path = LOGS / f"guest-{name}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def until(condition: Callable[[], object], explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


def key(domid: DomId, name: str) -> str:
    return disk.run("xenstore-read", f"/local/domain/{domid}/console/{name}").strip()


def talk(domid: DomId, conversation: Callable[[Talk], Awaitable[None]]) -> None:
    async def main() -> None:
        async with primary(domid) as session:
            await conversation(Talk(session.type, session.until))

    asyncio.run(main())


class Talk:
    """With a shell."""

    def __init__(
        self, type: Callable[[str], None], until: Callable[[str, float], Awaitable[bytes]]
    ) -> None:
        self.type, self._until = type, until

    async def until(self, text: str) -> bytes:
        return await self._until(text, PATIENCE)

    async def ask(self, command: str) -> bytes:
        """What a command prints.  Its end is a text that the echo of the command does not have."""
        self.type(f"{command}; echo e''nd\n")
        await self.until("e''nd")
        return (await self.until("end")).removesuffix(b"end").strip()


def type_to(tty: str, text: bytes) -> None:
    """As `xl console` does."""
    with Path(tty).open("wb", buffering=0) as terminal:
        terminal.write(text)


def test_log_in_through_python(talker: tuple[str, DomId]) -> None:
    """And xenconsoled has the console again afterwards, with the pty that it had."""
    name, domid = talker
    before = {word: key(domid, word) for word in ("port", "tty", "type")}

    async def conversation(guest: Talk) -> None:
        assert b"hvc0" in await guest.ask("cat /sys/class/tty/console/active")
        guest.type("exec login\n")
        await guest.until("login: ")
        guest.type("root\n")
        assert (await guest.ask("id -u")).endswith(b"0")
        assert key(domid, "type") == "xenpy"

    talk(domid, conversation)
    assert {word: key(domid, word) for word in before} == before
    type_to(before["tty"], b"echo back-$((6*7))\n")
    until(lambda: "back-42" in log_of(name), lambda: log_of(name)[-500:])


def test_the_page_s_program(talker: tuple[str, DomId]) -> None:
    _, domid = talker
    done = subprocess.run(
        [sys.executable, ROOT / "docs/howto/console_login.py", str(domid)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.returncode) == (["root", "done"], 0), done.stderr


def test_what_the_page_says_about_dom0() -> None:
    """hvc_xen of dom0 itself is the peer."""
    type_in(section(Path("docs/howto/consoles.md"), "A further console"))


def test_no_byte_is_lost_on_the_way_and_back(talker: tuple[str, DomId], tmp_path: Path) -> None:
    """A guest that prints all the time is taken and handed back, five times."""
    name, domid = talker
    theirs, log = LOGS / f"guest-{name}.log", tmp_path / "log"
    tty = key(domid, "tty")
    start, ours, pieces = theirs.stat().st_size, 0, b""
    # What its kernel has to say on a busy host would stand in the middle of a line.
    type_to(tty, b"dmesg -n 1; (n=0; while [ ! -e /stop ]; do n=$((n+1)); echo line-$n; done) &\n")
    for _ in range(5):
        until_longer(theirs)
        with taking(domid, "--log", str(log), "--log-size", "1G") as process:
            # xenconsoled has let go.
            pieces += theirs.read_bytes()[start:]
            start = theirs.stat().st_size
            until_longer(log)
            stop(process)
        pieces += log.read_bytes()[ours:]
        ours = log.stat().st_size
    until_longer(theirs)
    # Before anything is typed, whose echo would stand between.
    pieces += theirs.read_bytes()[start:]
    type_to(tty, b"touch /stop\n")
    numbers = [int(found) for found in re.findall(rb"line-(\d+)\r?\n", pieces)]
    assert numbers == list(range(1, len(numbers) + 1))


def until_longer(path: Path) -> None:
    size = path.stat().st_size
    until(lambda: path.stat().st_size > size + 500)


@contextmanager
def taking(domid: DomId, *words: str) -> Generator[subprocess.Popen[str]]:
    """`xenpy console take`, once it has the console."""
    command = [*XENPY, "console", "take", str(domid), "--json", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            where = json.loads(process.stdout.readline() or "{}")
            assert where.get("domid") == domid
            assert where["tty"] == key(domid, "tty")
            yield process
        finally:
            process.kill()


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


def test_xenconsoled_outlives_what_is_typed_to_its_pty(talker: tuple[str, DomId]) -> None:
    """By an `xl console` that was there before: it waits."""
    name, domid = talker
    with XlConsole(name) as terminal:
        terminal.type(b"echo before-$((6*7))\n")
        terminal.until(b"before-42")
        with taking(domid) as process:
            terminal.type(b"echo meanwhile-$((6*7))\n")
            time.sleep(2)
            stop(process)
        terminal.until(b"meanwhile-42")


def test_a_taker_that_is_killed(talker: tuple[str, DomId]) -> None:
    name, domid = talker
    with taking(domid) as process:
        process.kill()
        process.wait(PATIENCE)
        disk.run(*XENPY, "console", "give-back", str(domid))
        assert key(domid, "type") == "xenconsoled"
        type_to(key(domid, "tty"), b"echo alive-$((6*7))\n")
        until(lambda: "alive-42" in log_of(name), lambda: log_of(name)[-500:])


def test_xl_console_and_a_socket_meanwhile(talker: tuple[str, DomId], tmp_path: Path) -> None:
    name, domid = talker
    path = tmp_path / "socket"
    with taking(domid, "--socket", str(path)) as process:
        with XlConsole(name) as terminal, socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(path))
            terminal.type(b"echo from-xl-$((6*7))\n")
            terminal.until(b"from-xl-42")
            assert b"from-xl-42" in until_heard(reader, b"from-xl-42")
            reader.sendall(b"echo from-socket-$((6*7))\n")
            terminal.until(b"from-socket-42")
        stop(process)


def until_heard(reader: socket.socket, text: bytes) -> bytes:
    heard = b""
    reader.settimeout(PATIENCE)
    while text not in heard:
        heard += reader.recv(4096)
    return heard


class XlConsole:
    """`xl console` on a terminal of its own, without which it does not listen."""

    def __init__(self, name: str, *options: str) -> None:
        self._command = ["xl", "console", *options, name]
        self._heard = b""

    def __enter__(self) -> XlConsole:
        self._master, slave = os.openpty()
        self._process = subprocess.Popen(
            self._command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._master)

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def until(self, text: bytes) -> None:
        def heard() -> bool:
            with suppress(BlockingIOError):
                self._heard += os.read(self._master, 65536)
            return text in self._heard

        until(heard, lambda: repr(self._heard[-500:]))


def test_a_guest_that_dies_is_let_go_of() -> None:
    """It leaves no zombie behind, and the taker ends well."""
    with guest("mortal") as domid, taking(domid) as process:
        disk.run("xl", "destroy", "mortal")
        assert process.wait(PATIENCE) == 0
        until(lambda: "(null)" not in domains())


def test_further_consoles(tmp_path: Path) -> None:
    """hvc1 of a guest on a pty, as `xl console -n 1` finds it, hvc2 on a socket; and in logs."""
    with guest("further") as domid, serving(tmp_path) as daemon:
        path = tmp_path / "socket"
        attach = [*XENPY, "attach", "console", str(domid)]
        disk.run(*attach, "devid=1")
        disk.run(*attach, "devid=2", f"path={path}")

        async def conversation(guest: Talk) -> None:
            until(lambda: all(state(domid, devid) == "4" for devid in (1, 2)), daemon.said)
            await guest.ask("ls /dev/hvc1 /dev/hvc2")
            with XlConsole("further", "-t", "pv", "-n", "1") as terminal:
                # Within one `<>`: hvc forgets on its last close what stty has set.
                await guest.ask("(stty raw -echo; read x; echo got-$x >&0) <> /dev/hvc1 & true")
                terminal.type(b"typed\n")
                terminal.until(b"got-typed")
            with socket.socket(socket.AF_UNIX) as reader:
                reader.connect(str(path))
                await guest.ask("(stty raw -echo; seq 1 2000 >&0) <> /dev/hvc2")
                heard = until_heard(reader, b"2000\n")
            assert heard.split() == [str(n).encode() for n in range(1, 2001)]

        talk(domid, conversation)
        assert (tmp_path / f"console-{domid}-2.log").read_bytes().endswith(b"1999\n2000\n")
        disk.run(*XENPY, "detach", "console", str(domid), "devid=1")
    until(lambda: "(null)" not in domains())


def state(domid: DomId, devid: int) -> str:
    path = f"/local/domain/0/backend/xenpy-console/{domid}/{devid}/state"
    return disk.run("xenstore-read", path).strip()


@contextmanager
def serving(directory: Path) -> Generator[Serving]:
    with Serving(directory, ["serve", "console", f"log-dir={directory}"], "serving") as daemon:
        yield daemon


class Serving:
    """A daemon of ours, until the end of the test, which it must live to see."""

    def __init__(self, directory: Path, words: Sequence[str], ready: str) -> None:
        self._log = directory / "said"
        self._words, self._ready = words, ready

    def said(self) -> str:
        return self._log.read_text()

    def __enter__(self) -> Serving:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([*XENPY, *self._words, "-v"], stderr=log)
        until(lambda: self._ready in self.said() or self.process.poll() is not None, self.said)
        return self

    def __exit__(self, *_: object) -> None:
        alive = self.process.poll() is None
        self.process.terminate()
        self.process.wait(PATIENCE)
        print(self.said()[-4000:])
        assert alive


@pytest.fixture
def no_xenconsoled() -> Iterator[None]:
    """A dom0 in which nobody serves consoles."""
    pid = Path("/run/xen/xenconsoled.pid")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())
    yield
    disk.run(
        "xenconsoled", f"--pid-file={pid}", "--log=guest", f"--log-dir={LOGS}",
    )  # fmt: skip


@pytest.mark.usefixtures("no_xenconsoled")
def test_every_guest_without_xenconsoled(tmp_path: Path) -> None:
    """xl create waits ten seconds for the pty, and then it would end the guest."""
    words = ["console", "every", f"log-dir={tmp_path}"]
    with Serving(tmp_path, words, "every guest"), guest("first"):
        log = tmp_path / "guest-first.log"
        until(lambda: "guest first is up" in log.read_text(errors="replace"))
        with XlConsole("first") as terminal:
            terminal.type(b"echo typed-$((6*7))\n")
            terminal.until(b"typed-42")
