# SPDX-License-Identifier: MIT
"""The command line of `xenvm`: words in, a call of a verb, an exit status out."""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from xenpy.vm import box, lanes, progress, verbs
from xenpy.vm.bench import run as benchmarks
from xenpy.vm.cache import Cache
from xenpy.vm.context import Context
from xenpy.vm.errors import HARNESS, INTERRUPTED, USAGE, UsageError, VmError
from xenpy.vm.machine import DEFAULT_PATIENCE, end_on_signals
from xenpy.vm.qemu import Machine
from xenpy.vm.releases import DEFAULT, RELEASES
from xenpy.vm.supervisor import DEFAULT_IDLE

__all__ = ["main", "parser"]

DESCRIPTION = """\
A real Xen under QEMU: dom0, guests, and this checkout importable in dom0.

Everything is set up when it is first needed: Debian packages (named before they are
installed), a disk image, a warm snapshot.  All of it is kept in one directory,
$XENVM_CACHE or ~/.cache/xenvm; remove it and nothing is left.
"""

EPILOG = f"""\
examples:
  xenvm demo                              a Python backend serves a disk to a stock guest
  xenvm test                              every test, on both releases of Xen
  xenvm exec -- xl info                   one command in the dom0 of a pristine Xen
  xenvm exec -- python3 -m pytest tests/xen -k ring
  xenvm up; xenvm exec -- xl list; xenvm down        a machine that stays meanwhile

exit status: that of the command; {USAGE} wrong usage; {HARNESS} the harness failed and says
why on a line that begins with "xenvm: error:"; {INTERRUPTED} interrupted.
"""

DEFAULT_NAME = "default"
MACHINE = ("store", "init", "memory", "cpus")
"""The options that are fields of a `Machine`; that one was not named matters to `Context`."""
TAKES_COMMAND = ("exec", "bench", "test")


def parser() -> argparse.ArgumentParser:
    """The whole command line, but for what follows `--`."""
    top = argparse.ArgumentParser(
        prog="xenvm",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    adder = top.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)

    def verb(
        name: str,
        text: str,
        run: Callable[..., int],
        description: str = "",
        *,
        machine: bool = True,
        named: bool = True,
    ) -> argparse.ArgumentParser:
        sub = adder.add_parser(
            name,
            help=text,
            description=inspect.cleandoc(description or run.__doc__ or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress, only errors")
        if named:
            sub.add_argument(
                "--name", default=DEFAULT_NAME, metavar="INSTANCE",
                help=f"which machine of `up` ({DEFAULT_NAME})",
            )  # fmt: skip
        if machine:
            _add_machine_options(sub)
        return sub

    sub = verb("demo", "a stock guest on a disk served by Python", verbs.demo, named=False)
    sub.add_argument("--json", type=Path, metavar="FILE", help="write what was seen to FILE")

    sub = verb("test", "run the tests", lanes.test, lanes.HELP, named=False)
    lane = sub.add_mutually_exclusive_group()
    lane.add_argument("--fast", action="store_true", help="after each edit: minutes, one release")
    lane.add_argument("--all", action="store_true", help="with the tests marked `long`")
    sub.add_argument(
        "--jobs", type=_positive, default=0, metavar="N", help="lanes at a time (as CPUs allow)"
    )
    sub.add_argument(
        "--junit", type=Path, metavar="DIR", help="keep each lane's results there, as LANE.xml"
    )

    sub = verb("exec", "run a command in dom0", verbs.execute)
    sub.add_argument("--guest", metavar="NAME", help="run it in this guest, made if need be")
    sub.add_argument("--type", choices=["pv", "pvh"], default="pv", help="of that guest (pv)")
    sub.add_argument("--timeout", type=float, metavar="S", help="give up after so many seconds")

    sub = verb("up", "start a machine that stays", verbs.up)
    sub.add_argument(
        "--idle", type=float, default=DEFAULT_IDLE, metavar="S",
        help=f"end it when unused for so many seconds ({DEFAULT_IDLE:.0f})",
    )  # fmt: skip
    verb("down", "end the machine of `up`", verbs.down, machine=False)
    sub = verb("status", "what runs", verbs.status, machine=False, named=False)
    sub.add_argument("--json", action="store_true", help="one object per machine, in a list")

    for name, text, run in (
        ("push", "copy a file or directory into dom0", verbs.push),
        ("pull", "copy a file or directory out of dom0", verbs.pull),
    ):
        sub = verb(name, text, run, machine=False)
        sub.add_argument("source", metavar="SRC")
        sub.add_argument("target", metavar="DST")
    sub = verb("ssh", "a shell in dom0", verbs.ssh)
    sub.add_argument("--guest", metavar="NAME", help="in this guest instead")
    sub.add_argument("--type", choices=["pv", "pvh"], default="pv", help="of that guest (pv)")
    sub = verb("console", "follow the serial console", verbs.console, machine=False)
    sub.add_argument("--guest", metavar="NAME", help="what this guest's console said, and leave")
    verb("logs", "print what a machine said", verbs.logs, machine=False)

    sub = verb("bench", "count instructions", verbs.bench, named=False)
    sub.add_argument(
        "benchmark",
        nargs="?",
        metavar="block|streams",
        help="the block backend, or vchans and consoles, beside their rivals",
    )
    sub.add_argument("--rounds", type=_positive, default=3, metavar="N", help="runs (3)")
    sub.add_argument(
        "--json", nargs="?", const="-", metavar="FILE",
        help="write an object to FILE; without FILE, print it instead of the table",
    )  # fmt: skip
    sub.add_argument(
        "--cells", action="append", default=[], metavar="PATTERN",
        help="only those whose names match, as in a shell; repeatable",
    )  # fmt: skip
    sub.add_argument("--check", action="store_true", help="status 1 if a gate is missed")

    sub = verb("box", "make a Vagrant box", box.box, machine=False, named=False)
    _add_release(sub.add_argument)
    sub.add_argument("--output", type=Path, metavar="FILE", help="(xenvm-RELEASE.box)")
    return top


def _add_release(add: Callable[..., argparse.Action]) -> None:
    add(
        "--release", choices=list(RELEASES),
        help=f"Debian's: {', '.join(f'{row.name} = Xen {row.xen}' for row in RELEASES.values())} "
        f"({DEFAULT})",
    )  # fmt: skip


def _add_machine_options(sub: argparse.ArgumentParser) -> None:
    machine = sub.add_argument_group("the machine")
    _add_release(machine.add_argument)
    machine.add_argument("--fresh", action="store_true", help="pristine, even if `up` has one")
    machine.add_argument("--cold", action="store_true", help="boot, do not use the snapshot")
    machine.add_argument("--icount", action="store_true", help="a clock that counts instructions")
    machine.add_argument(
        "--store",
        choices=["xenstored", "oxenstored"],
        help=f"who serves XenStore ({Machine.store})",
    )
    machine.add_argument(
        "--init", choices=["busybox", "systemd"], help=f"dom0's process 1 ({Machine.init})"
    )
    machine.add_argument(
        "--memory", type=_positive, metavar="MIB", help=f"in all ({Machine.memory})"
    )
    machine.add_argument("--cpus", type=_positive, metavar="N", help=f"Xen's ({Machine.cpus})")
    machine.add_argument(
        "--watchdog", type=float, dest="patience", metavar="S",
        help=f"end a dom0 that is silent for so many seconds ({DEFAULT_PATIENCE:.0f})",
    )  # fmt: skip
    machine.add_argument("--save-console", type=Path, metavar="FILE", help="keep its console")
    machine.add_argument("--dry-run", action="store_true", help="print QEMU's command and leave")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _context(arguments: argparse.Namespace) -> Context:
    context = Context(cache=Cache(), name=getattr(arguments, "name", DEFAULT_NAME))
    context.release_name = getattr(arguments, "release", None)
    if hasattr(arguments, "icount"):
        named = {name: getattr(arguments, name) for name in (*MACHINE, "patience")}
        context.asked = {name: value for name, value in named.items() if value is not None}
        context.patience = context.asked.get("patience", DEFAULT_PATIENCE)
        machine = Machine(**{n: v for n, v in context.asked.items() if n in MACHINE})
        measures = arguments.verb == "bench"
        if measures and arguments.benchmark is not None:
            machine = benchmarks.machine(machine)
        context.machine = machine.with_icount() if arguments.icount or measures else machine
        context.save_console = arguments.save_console
        context.cold = arguments.cold
    return context


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.  Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    tail: list[str] | None = None
    if "--" in words:
        place = words.index("--")
        words, tail = words[:place], words[place + 1 :]
    arguments, unknown = parser().parse_known_args(words)
    if unknown and arguments.verb != "test":
        hint = f"; see `xenvm {arguments.verb} --help`"
        if tail is None and arguments.verb in TAKES_COMMAND:
            # Our own option, if it is one, stays before the `--`.
            hint = f"; a command comes after `--`: xenvm {arguments.verb} -- {' '.join(unknown)}"
        parser().error(f"unknown: {' '.join(unknown)}{hint}")
    if tail is not None and arguments.verb not in TAKES_COMMAND:
        parser().error(f"`xenvm {arguments.verb}` takes no command: -- {' '.join(tail)}")
    arguments.command = [*unknown, *(tail or [])]
    end_on_signals()
    progress.quiet(arguments.quiet)
    try:
        context = _context(arguments)
        if getattr(arguments, "dry_run", False):
            print(verbs.shown(context.qemu_command()))
            return 0
        return int(arguments.run(context, arguments))
    except VmError as error:
        print(error.render(), file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else HARNESS
    except (OSError, subprocess.SubprocessError) as error:
        # Status 1, a traceback's, would look like the command's own.
        print(VmError(f"{type(error).__name__}: {error}").render(), file=sys.stderr)
        return HARNESS
    except KeyboardInterrupt:
        return INTERRUPTED
