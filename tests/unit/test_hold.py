# SPDX-License-Identifier: MIT
"""What ends a hold: Enter, a signal, the time, another descriptor; and nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from xenpy.cli.hold import Hold

LONG = 20.0


def hold(seconds: float, keys: int, wake: int | None = None) -> bool:
    with Hold(keys) as one:
        return one.wait(seconds, wake)


@pytest.fixture
def keys() -> Iterator[tuple[int, int]]:
    """Where keys are heard, and where they are pressed."""
    pair = os.pipe()
    yield pair
    for fd in pair:
        os.close(fd)


def test_enter_ends_it(keys: tuple[int, int]) -> None:
    os.write(keys[1], b"x\n")
    assert hold(LONG, keys[0]) is False


def test_a_time_longer_than_poll_takes(keys: tuple[int, int]) -> None:
    os.write(keys[1], b"\n")
    assert hold(1e10, keys[0]) is False


def test_another_key_does_not(keys: tuple[int, int]) -> None:
    os.write(keys[1], b"x")
    began = time.monotonic()
    assert hold(0.05, keys[0]) is False
    assert time.monotonic() - began >= 0.05


def test_the_end_of_the_input_does_not() -> None:
    with open(os.devnull, "rb") as nothing:
        began = time.monotonic()
        assert hold(0.05, nothing.fileno()) is False
        assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_is_ours_again_afterwards(
    number: signal.Signals, keys: tuple[int, int]
) -> None:
    before = signal.getsignal(number)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
    with Hold(keys[0]) as one:
        timer.start()
        assert one.wait(LONG) is False
    timer.join()
    assert signal.getsignal(number) is before


def test_another_descriptor_is_told_apart(keys: tuple[int, int]) -> None:
    heard, told = os.pipe()
    try:
        os.write(told, b"x")
        assert hold(LONG, keys[0], wake=heard) is True
        os.write(keys[1], b"\n")
        os.read(heard, 1)
        assert hold(LONG, keys[0], wake=heard) is False
    finally:
        os.close(heard)
        os.close(told)
