# SPDX-License-Identifier: MIT
"""What `conformance` is made of: records changed, results compared, handlers watched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar, cast

from xenpy.ring_protocol import RequestT, ResponseT
from xenpy.wire import fields_of

__all__ = ["ends", "same", "same_page", "watched_for_bugs", "with_values"]

RecordT = TypeVar("RecordT", bound=tuple[int, ...])


def ends(width: str, size: int) -> Sequence[int]:
    """Numbers at which a field's meaning may change."""
    bits = 8 * size
    if width[0] == "i":
        return [-(1 << (bits - 1)), -1, 0, 1, (1 << (bits - 1)) - 1]
    return [0, 1, (1 << (bits - 1)) - 1, 1 << (bits - 1), (1 << bits) - 1]


def with_values(record: RecordT, values: Mapping[str, int]) -> RecordT:
    """The record with other values, those of fields that it has."""
    make = cast("Callable[..., RecordT]", type(record))
    names = fields_of(type(record))
    return make(*(values.get(name, old) for name, old in zip(names, record, strict=True)))


def watched_for_bugs(
    handle: Callable[[RequestT], ResponseT | Awaitable[ResponseT]], bugs: list[str]
) -> Callable[[RequestT], ResponseT | Awaitable[ResponseT]]:
    """The same handler; what it raises that is no errno is kept."""

    def note(request: RequestT, error: Exception) -> None:
        if not isinstance(error, OSError | NotImplementedError):
            bugs.append(f"{request}: {type(error).__name__}: {error}")

    async def finish(request: RequestT, result: Awaitable[ResponseT]) -> ResponseT:
        try:
            return await result
        except Exception as error:
            note(request, error)
            raise

    def watched(request: RequestT) -> ResponseT | Awaitable[ResponseT]:
        try:
            result = handle(request)
        except Exception as error:
            note(request, error)
            raise
        return finish(request, result) if isinstance(result, Awaitable) else result

    return watched


def same(found: object, wanted: object, what: str) -> None:
    # No `assert`: pytest explains those of test modules only.
    if found != wanted:
        raise AssertionError(f"{what}:\n{found}\nand not\n{wanted}")


def same_page(found: bytes, begins: bytes, what: str) -> None:
    wanted = begins.ljust(len(found), b"\0")
    for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if one != other:
            near = slice(max(0, place - 8), place + 8)
            text = f"differs from byte {place} on: {found[near]!r} and not {wanted[near]!r}"
            raise AssertionError(f"{what} {text}")
