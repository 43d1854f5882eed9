# SPDX-License-Identifier: MIT
"""A watch that nobody reads stays small, whatever is written below it (XSA-349)."""

from __future__ import annotations

import asyncio
import errno

import pytest

from xenpy.errors import XenError
from xenpy.store_watch import MAX_PATHS, Subscriber, Subscription, Watch


class Registry:
    """A store that watches nothing: the test tells what changed."""

    async def subscribe(self, path: str, subscriber: Subscriber) -> Subscription:
        return Subscription(path, "token", subscriber)

    async def unsubscribe(self, subscription: Subscription) -> None:
        pass


def test_the_same_path_is_told_once() -> None:
    async def main() -> None:
        async with Watch(Registry(), "/a") as watch:
            for _ in range(1000):
                watch.changed("/a/state")
            watch.changed("/a/other")
            assert await anext(watch) == {"/a/state", "/a/other"}

    asyncio.run(main())


def test_more_paths_than_are_remembered_become_the_root() -> None:
    async def main() -> None:
        async with Watch(Registry(), "/a") as watch:
            for number in range(MAX_PATHS):
                watch.changed(f"/a/{number}")
            assert len(await anext(watch)) == MAX_PATHS
            for number in range(100 * MAX_PATHS):
                watch.changed(f"/a/{number}")
            assert await anext(watch) == {"/a"}
            # Told; from here on it remembers again.
            watch.changed("/a/later")
            assert await anext(watch) == {"/a/later"}

    asyncio.run(main())


def test_what_changed_before_a_failure_is_told_before_it() -> None:
    async def main() -> None:
        async with Watch(Registry(), "/a") as watch:
            watch.changed("/a/b")
            watch.failed(XenError(errno.EACCES, "watch"))
            assert await anext(watch) == {"/a/b"}
            for _ in range(2):
                with pytest.raises(XenError):
                    await anext(watch)

    asyncio.run(main())
