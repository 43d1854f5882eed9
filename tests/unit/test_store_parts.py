# SPDX-License-Identifier: MIT
"""A long directory that changes while its parts are read."""

from __future__ import annotations

import asyncio
import errno

import pytest

from xenpy.errors import XenError
from xenpy.store_pyxs import Op
from xenpy.testing.fake_xenstored import FakeXenstored, Request
from xenpy.xenstore import Store

NAMES = {f"entry-with-a-long-name-{number:05}" for number in range(400)}


def listed(changes: int) -> tuple[str, set[str]]:
    """List 400 names, of which the first goes, or comes back, before each of so many parts
    but the first.  Returns that name and what was listed."""

    async def main() -> tuple[str, set[str]]:
        async with FakeXenstored() as fake, Store.open(fake.path) as store:
            for name in sorted(NAMES):
                fake.write(f"/long/{name}", "")
            first = (await store.list("/long"))[0]
            left = [changes]

            def change(request: Request) -> None:
                # The second string is the offset.
                later = request.payload.split(b"\0")[1] != b"0"
                if request.op == Op.DIRECTORY_PART and later and left[0]:
                    left[0] -= 1
                    if fake.get(f"/long/{first}") is None:
                        fake.write(f"/long/{first}", "")
                    else:
                        fake.rm(f"/long/{first}")

            fake.on_request = change
            return first, set(await store.list("/long"))

    return asyncio.run(main())


def test_a_list_that_changes_meanwhile_is_read_again() -> None:
    first, names = listed(1)
    assert names == NAMES - {first}
    assert listed(2) == (first, NAMES)


def test_a_list_that_never_stands_still_is_given_up() -> None:
    with pytest.raises(XenError) as caught:
        listed(10**6)
    assert caught.value.errno == errno.EAGAIN
