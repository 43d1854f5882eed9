# SPDX-License-Identifier: MIT
"""What every `xenpy.Backend` must do, as tests that yours inherits: over the fakes, and on Xen.

    class TestEcho(BackendSuite[Request, Response]):
        backend = EchoBackend
        header = ECHO_H                 # what `xenpy protocol echo.py --c` prints

        def examples(self):
            ask = Request(id=0, ref=0, length=5)
            return [Example(ask, Response(0, 0), page=b"hello", leaves=b"olleh")]

pytest collects the class and runs each test twice; where there is no Xen, the second is skipped.
Needs pytest.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any, Final, Generic, TypeAlias

import pytest

from xenpy.attach import NO_SETTINGS, attach, detach
from xenpy.backend import DeviceContext, Keys
from xenpy.device_nodes import ATTACHED
from xenpy.driver import Driver
from xenpy.errors import PeerError
from xenpy.protocol_page import page_of, width_of
from xenpy.protocol_text import c_header
from xenpy.ring_backend import Backend, driver_of
from xenpy.ring_frontend import NOTHING, Connection
from xenpy.ring_protocol import ID, STATUS, RequestT, ResponseT
from xenpy.testing.checks import ends, same, same_page, watched_for_bugs, with_values
from xenpy.testing.example import Example
from xenpy.testing.world import World, device, fakes, serving, this_xen
from xenpy.wire import fields_of

__all__ = ["BackendSuite", "Example"]

MANY: Final = 200
"""Requests at a time: more than most rings hold, less than gntalloc gives pages (1024)."""
RANDOM: Final = 64
"""Requests of numbers drawn at random, with a seed."""
IN_WORK: Final = 0.05
"""Seconds after which a request is likely to be in work."""
NOT_GRANTED: Final = 2**31
"""A reference beyond every grant table."""

Enter: TypeAlias = Callable[[], AbstractAsyncContextManager[World]]


class BackendSuite(Generic[RequestT, ResponseT]):
    """Subclass it in a test module, as Test..., and say what follows.

    Attributes:
        backend: the class under test.
        header: the records in C: what the other half has been written, or will be written, from.
        features: the keys that the backend publishes.
        frontend_features: those of a frontend that keeps the rules.
        settings: words for `xenpy attach`.
        bad_keys: those of frontends that `connect` must refuse, one of them each.
        reference: the field that names a page.
        patience: seconds that a test may take until something hangs.
    """

    backend: type[Backend[RequestT, ResponseT]]
    header: str
    features: Keys = NOTHING
    frontend_features: Keys = NOTHING
    settings: Mapping[str, str] = NO_SETTINGS
    bad_keys: Sequence[Keys] = ()
    reference: str = "ref"
    patience: float = 120.0

    def examples(self) -> Sequence[Example[RequestT, ResponseT]]:
        """What a fresh device does, in this order; at least one that does not depend."""
        raise NotImplementedError

    def make(self, context: DeviceContext) -> Backend[RequestT, ResponseT]:
        """Make one; for a class that is not called with the context alone."""
        return self.backend(context)

    def fails(self, response: ResponseT) -> bool:
        """Does it say that the request failed?  For a protocol with `failure=`."""
        return dict(zip(fields_of(type(response)), response, strict=True))[STATUS] < 0

    @pytest.fixture(
        params=[
            pytest.param(fakes, id="fake"),
            pytest.param(this_xen, id="xen", marks=pytest.mark.xen),
        ]
    )
    def world(self, request: pytest.FixtureRequest) -> Enter:
        """Where a test takes place: over the fakes, and under `pytest --xen` on a real Xen."""
        enter: Enter = request.param
        return enter

    # The protocol

    def test_the_records_are_those_of_the_header(self) -> None:
        """Names, order, widths, signs: a change of any breaks the other half."""
        found = c_header(page_of(self.backend.spoken()))
        same(found.strip(), inspect.cleandoc(self.header), "the records")

    def test_the_backend_publishes_its_features(self, world: Enter) -> None:
        """Those, and none besides."""

        async def main(world: World) -> None:
            page = page_of(self.backend.spoken(), self.features)
            ours = {key: str(value) for key, value in self.features.items()}
            others = {key.name for key in page.backend_keys} | {ATTACHED}
            async with self._connect(world) as link:
                found = {k: v for k, v in link.backend.items() if k in ours or k not in others}
            same(found, ours, "the features")

        self._run(world, main)

    # What it does

    def test_each_example_comes_out_as_it_says(self, world: Enter) -> None:
        async def main(world: World) -> None:
            async with self._connect(world) as link:
                await self._ask_all(link)

        self._run(world, main)

    def test_many_requests_at_a_time(self, world: Enter) -> None:
        """Each answer is its own question's, and none is lost."""

        async def main(world: World) -> None:
            examples = [example for example in self.examples() if not example.depends]
            count = min(MANY, self._highest_id + 1)
            async with self._connect(world) as link:
                await asyncio.gather(
                    *(self._ask(link, n, examples[n % len(examples)]) for n in range(count))
                )

        self._run(world, main)

    def test_no_page_stays_mapped(self, world: Enter) -> None:
        async def main(world: World) -> None:
            async with self._connect(world) as link:
                before = world.mapped()
                await self._ask_all(link)
                same(world.mapped(), before, "pages that are mapped")

        self._run(world, main)

    # A frontend that keeps no rules

    def test_a_page_that_is_not_granted(self, world: Enter) -> None:
        """The request fails, and nothing else does."""

        async def main(world: World) -> None:
            async with self._connect(world) as link:
                for number, example in enumerate(self._with_pages()):
                    values = {ID: self._highest_id - number, self.reference: NOT_GRANTED}
                    request = with_values(example.request, values)
                    self._has_failed(request, await link.request(request))
                await self._ask_first(link)

        self._run(world, main)

    def test_a_page_that_is_granted_for_reading_only(self, world: Enter) -> None:
        """What reads it does; what writes it fails, and the page stays as it is."""

        async def main(world: World) -> None:
            async with self._connect(world) as link:
                for number, example in enumerate(self._with_pages()):
                    if example.after != example.page:
                        await self._ask_in_vain(link, number, example)
                    elif not example.depends and not self.fails(example.response):
                        await self._ask(link, number, example, writable=False)
                await self._ask_first(link)

        self._run(world, main)

    def test_numbers_at_their_ends_and_at_random(self, world: Enter) -> None:
        """Whatever a field holds, there is an answer, and no error in the handler but an errno."""

        async def main(world: World) -> None:
            async with self._connect(world) as link:
                with link.grant() as page:
                    for number, request in enumerate(self._absurd(page.ref)):
                        values = {ID: self._highest_id - number % (self._highest_id + 1)}
                        await link.request(with_values(request, values))
                await self._ask_first(link)

        self._run(world, main)

    def test_keys_that_make_no_sense(self, world: Enter) -> None:
        """They cost their own device, and no other."""

        async def main(world: World) -> None:
            async with self._connect(world) as link:
                # A device for each: keys stay when a frontend has gone.
                for devid, keys in enumerate(self.bad_keys, 1):
                    try:
                        async with self._connect(world, devid, features=keys):
                            pass
                    except (OSError, PeerError):
                        await self._ask_first(link)
                        continue
                    raise AssertionError(f"a frontend with {dict(keys)} is served")

        self._run(world, main, devices=1 + len(self.bad_keys))

    # Its life

    def test_a_frontend_that_goes_and_comes_back(self, world: Enter) -> None:
        """Every connection begins as the first one did, also after one that left in haste."""

        async def main(world: World) -> None:
            for _ in range(3):
                async with self._connect(world) as link:
                    await self._ask_all(link)
                    left = asyncio.create_task(self._ask_first(link))
                    await asyncio.sleep(0)
                # It was answered, or told that there will be no answer.
                await asyncio.wait([left])
                if not isinstance(left.exception(), OSError | None):
                    await left

        self._run(world, main)

    def test_two_devices_know_nothing_of_each_other(self, world: Enter) -> None:
        async def main(world: World) -> None:
            async with self._connect(world, 0) as one, self._connect(world, 1) as two:
                await self._ask_all(one)
                await self._ask_all(two)

        self._run(world, main, devices=2)

    def test_a_device_that_is_taken_away_by_force(self, world: Enter) -> None:
        """Its frontend is not asked, as when its domain dies: soon nothing of it is held."""

        async def main(world: World) -> None:
            before = world.mapped()
            driver = self._driver(self.make)
            plan = driver.plan({"devid": "1", **self.settings}, driver.kind)
            ends = await attach(world.store, world.domid, plan)
            async with self._connect(world, 1) as link:
                # Whether there are answers, and which, is not what is looked at.
                asking = asyncio.gather(
                    *(self._ask(link, *example) for example in enumerate(self.examples())),
                    return_exceptions=True,
                )
                # Time to begin with them: one that is quick may be done.
                await asyncio.sleep(IN_WORK)
                await detach(world.store, ends, force=True)
                same(world.mapped(), before, "pages that are mapped")
                await asking

        self._run(world, main)

    # How

    def _run(
        self,
        enter: Enter,
        main: Callable[[World], Coroutine[Any, Any, None]],
        *,
        devices: int = 1,
    ) -> None:
        async def run() -> None:
            async with asyncio.timeout(self.patience), self._served(enter, devices) as world:
                await main(world)

        asyncio.run(run())

    @asynccontextmanager
    async def _served(self, enter: Enter, devices: int) -> AsyncGenerator[World]:
        bugs: list[str] = []

        def make(context: DeviceContext) -> Backend[RequestT, ResponseT]:
            made = self.make(context)
            # Whatever else is raised is logged and answered with EIO, which hides it.
            setattr(made, "handle", watched_for_bugs(made.handle, bugs))  # noqa: B010
            return made

        driver = self._driver(make)
        async with enter() as world, serving(world, driver), AsyncExitStack() as held:
            for devid in range(devices):
                await held.enter_async_context(device(world, driver, devid, self.settings))
            yield world
        if bugs:
            raise AssertionError("a handler may raise OSError and NotImplementedError: " + bugs[0])

    def _driver(self, make: Callable[[DeviceContext], Backend[RequestT, ResponseT]]) -> Driver:
        return driver_of(make, self.backend.spoken(), settings=self.backend.settings)

    def _connect(
        self, world: World, devid: int = 0, *, features: Keys | None = None
    ) -> Connection[RequestT, ResponseT]:
        keys = self.frontend_features if features is None else features
        protocol = self.backend.spoken()
        return world.connect(protocol, devid, features=keys, rings=protocol.max_rings)

    async def _ask_all(self, link: Connection[RequestT, ResponseT]) -> None:
        for number, example in enumerate(self.examples()):
            await self._ask(link, number, example)

    async def _ask_first(self, link: Connection[RequestT, ResponseT]) -> None:
        """Does it still serve?"""
        await self._ask(link, 0, next(it for it in self.examples() if not it.depends))

    async def _ask(
        self,
        link: Connection[RequestT, ResponseT],
        number: int,
        example: Example[RequestT, ResponseT],
        *,
        writable: bool = True,
    ) -> None:
        """Ask, as number `number` from the highest id down; compare answer and page."""
        values = {ID: self._highest_id - number}
        with ExitStack() as held:
            page = None
            if example.page is not None:
                page = held.enter_context(link.grant(writable=writable))
                page[: len(example.page)] = example.page
                values[self.reference] = page.ref
            request = with_values(example.request, values)
            response = await link.request(request, ring=number % link.rings)
            wanted = with_values(example.response, {ID: self._highest_id - number})
            same(response, wanted, f"the answer to {request}")
            if page is not None:
                same_page(bytes(page), example.after, f"the page of {request}")

    async def _ask_in_vain(
        self,
        link: Connection[RequestT, ResponseT],
        number: int,
        example: Example[RequestT, ResponseT],
    ) -> None:
        content = example.page or b""
        with link.grant(writable=False) as page:
            page[: len(content)] = content
            values = {ID: self._highest_id - number, self.reference: page.ref}
            request = with_values(example.request, values)
            self._has_failed(request, await link.request(request))
            same_page(bytes(page), content, f"the page of {request}, which may not be written")

    def _has_failed(self, request: RequestT, response: ResponseT) -> None:
        if not self.fails(response):
            raise AssertionError(f"the answer to {request} is {response}: it is to have failed")

    def _with_pages(self) -> Sequence[Example[RequestT, ResponseT]]:
        return [example for example in self.examples() if example.page is not None]

    def _absurd(self, ref: int) -> Sequence[RequestT]:
        """Requests of each kind with one field at an end, and some of nothing but chance."""
        fields = {
            name: width_of(code)
            for name, code in fields_of(self.backend.spoken().request).items()
            if name != ID
        }
        named = {self.reference: ref} if self.reference in fields else {}
        found: list[RequestT] = []
        for example in self.examples():
            good = with_values(example.request, named)
            for name, (width, size) in fields.items():
                found += [with_values(good, {name: value}) for value in ends(width, size)]
        rng = random.Random(1)
        some = self.examples()[0].request
        for _ in range(RANDOM):
            values = {name: rng.choice(ends(*width)) for name, width in fields.items()}
            found.append(with_values(some, values | (named if rng.random() < 0.5 else {})))
        return found

    @property
    def _highest_id(self) -> int:
        """Counted from there, an id that is cut short shows at once."""
        width, size = width_of(fields_of(self.backend.spoken().request)[ID])
        return (1 << (8 * size - (width[0] == "i"))) - 1
