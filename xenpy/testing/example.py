# SPDX-License-Identifier: MIT
"""What `xenpy.testing.conformance` is told of a backend: a request, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from xenpy.ring_protocol import RequestT, ResponseT

__all__ = ["Example"]


@dataclass(frozen=True)
class Example(Generic[RequestT, ResponseT]):
    """A request and what becomes of it.

    Attributes:
        request: its id, and its reference if there is a page, are filled in.
        response: its id is filled in.
        page: what the page begins with that the request names; the rest is 0.  None: it names
            none.  The request must need the page: without it, it is to fail.
        leaves: what the page begins with afterwards, if that is anything else.
        depends: the answer depends on the examples before it.
    """

    request: RequestT
    response: ResponseT
    page: bytes | None = None
    leaves: bytes | None = None
    depends: bool = False

    @property
    def after(self) -> bytes:
        """What the page begins with in the end."""
        return (self.page or b"") if self.leaves is None else self.leaves
