# SPDX-License-Identifier: MIT
"""The native block engine without Xen and without Python: over a mock in C, under sanitizers.

Each program's source says what it shows.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import xenpy
from compiling import compile_c
from xenpy.drivers.block import native, worker

HERE = Path(__file__).parent
ENGINE = Path(xenpy.__file__).parent / "drivers" / "block" / "engine"
WRAPPED = "-Wl,--wrap=pwritev,--wrap=preadv,--wrap=fdatasync"
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread", "-Wno-tsan")
SEED = "12345"
LIMIT = 240.0

many = [pytest.param("20000"), pytest.param("1000000", marks=pytest.mark.long)]
PERSISTENT, MAPPED, CALLBACKS, SIGNAL = 1, 16, 0x10000, 0x20000
"""BLOCK_PERSISTENT and BLOCK_MAPPED of engine.h; RIG_CALLBACKS and RIG_SIGNAL of mock_xen.h."""
every_way = pytest.mark.parametrize(
    "flags",
    [pytest.param(one | other, id=f"{name}-{kind}")
     for one, name in ((PERSISTENT, "persistent"), (0, "copied"))
     for other, kind in (
         (0, "file"), (MAPPED | SIGNAL, "mapped"), (CALLBACKS, "callbacks"),
     )],
)  # fmt: skip
both_ways = pytest.mark.parametrize("persistent", ["1", "0"], ids=["persistent", "copied"])


def run(directory: Path, name: str, flags: tuple[str, ...], *arguments: str) -> str:
    program = compile_c(
        HERE / f"{name}.c", directory / name, f"-I{ENGINE}", "-g", "-pthread", *flags
    )
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@every_way
@pytest.mark.parametrize("pages", ["1", "16"])
def test_a_random_history_gives_what_a_model_says(tmp_path: Path, flags: int, pages: str) -> None:
    said = run(tmp_path, "history", ADDRESS, "1000", SEED, str(flags), pages)
    assert int(said.split()[0]) > 5000


@every_way
def test_no_data_race_with_an_honest_frontend(tmp_path: Path, flags: int) -> None:
    run(tmp_path, "history", THREAD, "200", SEED, str(flags), "1")


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("requests", many)
def test_r3_slots_that_change_while_they_are_read(
    tmp_path: Path, persistent: str, requests: str
) -> None:
    said = run(tmp_path, "hostile", ADDRESS, requests, SEED, persistent)
    total, refused, errors, *_ = (int(word) for word in said.split() if word.isdigit())
    assert 0 < refused < errors < total


def test_r3_a_slot_is_not_looked_at_again(tmp_path: Path) -> None:
    run(tmp_path, "hidden", ADDRESS)


def test_b3_what_fails_below_is_never_acknowledged(tmp_path: Path) -> None:
    run(tmp_path, "failures", (*ADDRESS, WRAPPED))


def test_python_packs_the_structures_as_c_declares_them(tmp_path: Path) -> None:
    rows = [line.split() for line in run(tmp_path, "fields", ()).splitlines()]
    offsets = {name: int(row[0]) for name, *row in rows if row[0] != "-"}
    sizes = {name: int(row[-1]) for name, *row in rows}
    fields = [name for name in offsets if name.startswith("block_config.")]
    packed = native.CONFIG.unpack(bytes(range(native.CONFIG.size)))
    assert len(fields) == len(packed)
    at = 0
    for name in fields:
        assert offsets[name] == at, name
        at += sizes[name]
    assert at == native.CONFIG.size == sizes["block_config"]
    counters = [name.split(".")[1] for name in offsets if name.startswith("block_counters.")]
    assert tuple(counters) == native.COUNTERS
    assert [offsets[f"block_counters.{name}"] for name in counters] == [
        8 * number for number in range(len(counters))
    ]
    assert sizes["block_counters"] == 8 * len(counters)
    assert offsets["block_state.sectors"] == native.SECTORS
    assert offsets["block_state.stop"] == native.STOP
    assert offsets["block_state.counters"] == native.FIRST_COUNTER
    assert offsets["block_worker.config"] == 0
    assert offsets["block_worker.remote_port"] == native.CONFIG.size
    assert offsets["block_worker.refs"] == native.CONFIG.size + 4
    assert sizes["block_worker"] == native.CONFIG.size + worker.RING.size


@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD], ids=["address", "thread"])
def test_a_lost_write_is_known_to_all_queues(tmp_path: Path, sanitizer: tuple[str, ...]) -> None:
    run(tmp_path, "flushes", sanitizer)


@pytest.mark.slow
@every_way
def test_what_is_recorded_is_what_the_ring_carried(tmp_path: Path, flags: int) -> None:
    said = run(tmp_path, "trace", ADDRESS, "40000", SEED, str(flags), "1")
    read, lost, _, _, total = said.split()
    kept = (1 << 14) - 32
    assert int(read) == kept
    assert int(lost) == int(total) - kept


def test_a_reader_that_keeps_up_loses_nothing_and_races_with_nobody(tmp_path: Path) -> None:
    """As many as there are places: no record is written over, which would be a race by design."""
    said = run(tmp_path, "trace", THREAD, "16000", SEED, "0", "0")
    read, lost, batches, _, total = said.split()
    assert (int(read), int(lost)) == (int(total), 0)
    assert 0 < int(batches) <= int(total)


def test_no_record_is_ever_half_of_one(tmp_path: Path) -> None:
    """The reader is always where the engine is about to write, and checks every record."""
    said = run(tmp_path, "trace", ADDRESS, "400000", SEED, "0", "2")
    read, lost, _, _, total = said.split()
    assert int(read) + int(lost) == int(total)
    assert int(read) > 10_000
    assert int(lost) > 0


@pytest.mark.slow
def test_who_looks_into_a_ring_sees_what_stands_there(tmp_path: Path) -> None:
    for _ in range(10):
        # Both threads must have run at the same time, which a busy machine may put off.
        said = run(tmp_path, "peek", ADDRESS, "400000")
        requests, answers, *_ = said.split()
        if int(requests) and int(answers):
            break
    assert int(requests) > 0
    assert int(answers) > 0
