# SPDX-License-Identifier: MIT
"""What frontends used and a backend did not look at: `xenpy run --suggest`.

For whoever writes the second half of a protocol that somebody else began.  All that is kept is a
peer's, so it is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Suggestions"]

MOST: Final = 64
"""Keys, and kinds of request, that are remembered."""
SHOWN: Final = 60
"""Characters of a value."""
EVERYBODY_S: Final = {
    "backend", "backend-id", "event-channel", "protocol", "ring-ref", "state",
}  # fmt: skip
"""Keys that the framework looks at."""
KIND_FIELDS: Final = ("operation", "op", "command", "cmd", "type", "kind")
"""What a request's field is called that says what it is; the first that there is."""


class _Watched(Mapping[str, str]):
    """A frontend's keys, which remember who was asked for."""

    def __init__(self, keys: Mapping[str, str], left: dict[str, str]) -> None:
        self._keys = keys
        self._left = left

    def __getitem__(self, key: str) -> str:
        self._left.pop(key, None)
        return self._keys[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(slots=True)
class _Unhandled:
    first: str
    count: int = 0


class Suggestions:
    """Of all devices of a daemon."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._requests: dict[tuple[str, int], _Unhandled] = {}

    def watched(self, keys: Mapping[str, str]) -> Mapping[str, str]:
        """The same keys; those that nobody asks for are suggested."""
        for key, value in keys.items():
            if key not in EVERYBODY_S and len(self._keys) < MOST:
                self._keys[key] = value[:SHOWN]
        return _Watched(keys, self._keys)

    def unhandled(self, request: tuple[int, ...]) -> None:
        """A request for which `handle` raised NotImplementedError."""
        names: tuple[str, ...] = getattr(request, "_fields", ())
        field = next((name for name in KIND_FIELDS if name in names), "")
        kind = field, request[names.index(field)] if field else 0
        if kind in self._requests or len(self._requests) < MOST:
            self._requests.setdefault(kind, _Unhandled(repr(request)[: 4 * SHOWN])).count += 1

    def __str__(self) -> str:
        lines: list[str] = []
        if self._keys:
            lines.append("keys that a frontend published and nobody looked at:")
        for key, value in sorted(self._keys.items()):
            ask = "flag" if value in ("0", "1") else "number" if value.isdigit() else ""
            stub = f"{ask}(self.frontend, {key!r})" if ask else f"self.frontend.get({key!r})"
            lines.append(f"    {key} = {value!r:12}  {stub}")
        if self._requests:
            lines.append("requests that nobody handled:")
        for (field, number), seen in sorted(self._requests.items()):
            lines.append(f"    {seen.count} times, first {seen.first}")
            lines.append(f"        if request.{field} == {number}: ..." if field else "        ...")
        return "\n".join(lines) or "nothing: all that frontends used was looked at"
