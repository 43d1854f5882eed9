# SPDX-License-Identifier: MIT
"""Pages of a frontend of your own that its backend may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, TypeAlias

from xenpy.gnttab import SharedPages
from xenpy.types import GrantRef

__all__ = ["Asked", "GrantedPage", "ReturnedPages"]

Asked: TypeAlias = tuple[int, int]
"""A request: the number of its ring, and its id."""


class GrantedPage:
    """A page of ours, zeroed, that the backend may look at; a context manager.

    Slices are bytes: `page[:5]`, `page[:5] = b"hello"`.

    Attributes:
        ref: its grant reference.
    """

    def __init__(self, pages: SharedPages, give_back: Callable[[SharedPages], None]) -> None:
        self._pages = pages
        self._give_back = give_back
        self.ref: GrantRef = pages.refs[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give_back(self._pages)

    def __len__(self) -> int:
        return self._pages.size

    def __bytes__(self) -> bytes:
        return self[:]

    def __getitem__(self, place: slice) -> bytes:
        with self._pages.view() as view:
            _check(place)
            return view.tobytes()[place]

    def __setitem__(self, place: slice, content: bytes | bytearray | memoryview) -> None:
        with self._pages.view() as view:
            _check(place)
            view[place] = content


def _check(place: object) -> None:
    if not isinstance(place, slice):
        raise TypeError(f"a granted page is asked for slices, not for {place!r}")


class ReturnedPages:
    """Pages that were given back while a request was in flight that may name them.

    A caller may stop waiting; the backend goes on, and must not find somebody else's data there.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[set[Asked], SharedPages]] = []

    def give_back(self, pages: SharedPages, in_flight: Iterable[Asked]) -> None:
        """Close them once all of these requests have been answered."""
        self._waiting.append((set(in_flight), pages))
        self.answered(())

    def answered(self, requests: Iterable[Asked]) -> None:
        """These are in flight no more."""
        left: list[tuple[set[Asked], SharedPages]] = []
        for in_flight, pages in self._waiting:
            in_flight.difference_update(requests)
            if in_flight:
                left.append((in_flight, pages))
            else:
                pages.close()
        self._waiting = left

    def forget(self) -> None:
        """No backend looks at any of them."""
        waiting, self._waiting = self._waiting, []
        for _, pages in waiting:
            pages.close()
