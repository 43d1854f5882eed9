# SPDX-License-Identifier: MIT
"""`xenpy block` over the fakes: what it prints, its exit statuses, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE
from conformance.fake_framework import FakeFramework, env
from conformance.served_disk import SIZE, Served, offers, served
from xenpy.cli import block_common
from xenpy.cli.block_common import device_path
from xenpy.cli.errors import UsageError
from xenpy.cli.main import EXIT_FAILED, EXIT_USAGE, main
from xenpy.types import DomId
from xenpy.xenstore import Store

__all__ = ["env", "offers", "served"]


@pytest.fixture
def block(env: FakeFramework, served: Served) -> Callable[..., int]:
    """`xenpy block VERB` on the disk."""

    def run(verb: str, *words: str) -> int:
        place = ["--store", env.store_path() or "", "--timeout", "20"]
        return main(["block", verb, served.backend.front, *words, *place])

    return run


def digest(content: bytes | bytearray) -> tuple[int, str]:
    """Length and sha256: a failure that shows two disks shows nothing."""
    return len(content), hashlib.sha256(content).hexdigest()


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Standard input."""

    def put(content: bytes) -> None:
        class Input:
            buffer = io.BytesIO(content)

        monkeypatch.setattr(sys, "stdin", Input())

    return put


def test_info_says_what_was_agreed_on(
    block: Callable[..., int], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert block("info", "--json", "--queues", "2", "--ring-page-order", "1") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frontend"] == served.backend.front
    assert found["backend"] == served.backend.back
    assert (found["size"], found["sectors"], found["sector_size"]) == (SIZE, 4096, 512)
    assert (found["queues"], found["ring_pages"], found["depth"]) == (2, 2, 128)
    assert (found["max_segments"], found["secure_discard"], found["readonly"]) == (
        4096,
        True,
        False,
    )
    assert block("info") == 0
    said = capsys.readouterr().out
    assert "size                  2097152\n" in said
    assert "secure discard        yes\n" in said


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), slice(0, SIZE)),
        (("--offset", "1M"), slice(1 << 20, SIZE)),
        (("--length", "1000"), slice(0, 1000)),
        (("--offset", "511", "--length", "2"), slice(511, 513)),
        (("--offset", "2M"), slice(SIZE, SIZE)),
        (("--offset", "700", "--length", "1500K"), slice(700, 700 + 1500 * 1024)),
    ],
)
def test_read_gives_the_bytes_that_were_asked_for(
    block: Callable[..., int],
    served: Served,
    capsysbinary: pytest.CaptureFixture[bytes],
    words: tuple[str, ...],
    part: slice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xenpy.cli.block_read.CHUNK", 1 << 16)
    assert block("read", *words) == 0
    assert digest(capsysbinary.readouterr().out) == digest(served.backend.disk[part])


def test_read_can_say_the_sum_instead(
    block: Callable[..., int], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert block("read", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"read": SIZE, "sha256": digest(served.backend.disk)[1]}


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (512, 100_000), (1024, 1), (0, 0)])
def test_write_changes_what_it_is_given_and_no_more(
    block: Callable[..., int],
    served: Served,
    feed: Callable[[bytes], None],
    offset: int,
    length: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xenpy.cli.block_write.CHUNK", 1 << 16)
    before, content = bytes(served.backend.disk), random.Random(2).randbytes(length)
    feed(content)
    assert block("write", "--offset", str(offset), "--json") == 0
    expected = before[:offset] + content + before[offset + length :]
    assert digest(served.backend.disk) == digest(expected)
    assert json.loads(capsys.readouterr().out) == {"written": length, "flushed": True}
    assert served.backend.requests[-1].operation == 3


def test_a_backend_without_flush_is_told_of(
    block: Callable[..., int],
    served: Served,
    offers: dict[str, str],
    feed: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key in ("feature-flush-cache", "feature-barrier"):
        served.backend.offers[key] = "0"
        served.backend.disk[:] = bytes(SIZE)
    asyncio.run(_say(served, {"feature-flush-cache": 0, "feature-barrier": 0}))
    feed(b"x" * 512)
    assert block("write") == 0
    said = capsys.readouterr()
    assert "offers no flush" in said.err
    assert said.out == ""


async def _say(served: Served, keys: dict[str, int]) -> None:
    async with Store.open(served.backend.env.store_path(), timeout=PATIENCE) as store:
        for key, value in keys.items():
            await store.write(f"{served.backend.back}/{key}", value)


@pytest.mark.parametrize("operation", ["read", "randread", "write", "randwrite", "flush"])
def test_bench_counts(
    block: Callable[..., int], operation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--op", operation, "--size", "8K", "--depth", "4", "--seconds", "0.2", "--destroy"]
    assert block("bench", *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["operation"] == operation
    assert found["requests"] >= 4
    assert 0 < found["median_ms"] <= found["p99_ms"]
    assert (found["mib_per_second"] > 0) == (operation != "flush")
    assert block("bench", *words) == 0
    assert "per second    " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("read", "--offset", "3M"), "of a disk of 2097152 bytes"),
        (("read", "--offset", "1M", "--length", "2M"), "of a disk of 2097152 bytes"),
        (("info", "--queues", "0"), "queues is 0"),
        (("info", "--ring-page-order", "5"), "ring_page_order is 5"),
        (("bench", "--op", "write"), "--destroy"),
        (("bench", "--depth", "0"), "depth is 0"),
        (("bench", "--size", "4M"), "4194304 bytes a request"),
        (("bench", "--seconds", "1e-12"), "are over before the first request"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_makes_no_sense_is_wrong_usage(
    block: Callable[..., int],
    words: tuple[str, ...],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert block(*words) == EXIT_USAGE
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.out == ""


def test_a_terminal_gets_no_disk(
    block: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert block("read") == EXIT_USAGE
    assert "terminal" in capsys.readouterr().err


def test_more_input_than_disk_fails_and_says_why(
    block: Callable[..., int], feed: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed(bytes(SIZE + 512))
    assert block("write", "--json") == EXIT_FAILED
    said = capsys.readouterr()
    assert json.loads(said.out)["errno"] == "EINVAL"
    assert "2097152 bytes" in said.err


def test_a_backend_that_breaks_the_protocol_is_a_failure(
    block: Callable[..., int], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_say(served, {"feature-flush-cache": 7}))
    assert block("info", "--json") == EXIT_FAILED
    said = capsys.readouterr()
    assert "feature-flush-cache is 7" in said.err
    assert json.loads(said.out)["errno"] is None


def test_what_the_kernel_drives_is_left_to_it(
    served: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    driver = tmp_path / "bus/drivers/vbd"
    driver.mkdir(parents=True)
    (tmp_path / "vbd-51728").mkdir()
    (tmp_path / "vbd-51728/driver").symlink_to(driver)
    monkeypatch.setattr(block_common, "SYSFS", tmp_path)
    store = served.backend.env.store_path() or ""
    assert main(["block", "info", "xvdb", "--store", store, "--json"]) == EXIT_FAILED
    said = capsys.readouterr()
    assert f"echo vbd-51728 > {driver}/unbind" in said.err
    assert json.loads(said.out)["errno"] == "EBUSY"


def test_a_device_is_named_in_three_ways() -> None:
    path = "/local/domain/3/device/vbd/51728"
    for name in ("xvdb", "51728", path):
        assert device_path(name, DomId(3)) == path
    with pytest.raises(UsageError, match="sdz99"):
        device_path("sdz99", DomId(3))
