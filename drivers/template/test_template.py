# SPDX-License-Identifier: MIT
"""Both halves of `template`: over the fakes, and on Xen under `pytest --xen`."""

import asyncio
import errno
from collections.abc import Sequence
from types import MappingProxyType

import pytest
from ask_template import ask
from template import LONGEST, NAP, REVERSE, SUM, Request, Response, Template

from xenpy.testing.conformance import BackendSuite, Example
from xenpy.testing.ring import both


# What every backend must do, a dozen tests, each over the fakes and, under `pytest --xen`, on a
# real Xen; below is what it needs to know of this one.
class TestTemplate(BackendSuite[Request, Response]):
    backend = Template

    # What `xenpy protocol template.py --c` prints.  Other domains were built from it: when this
    # test fails, they do not understand you any more.
    header = """
        struct template_request {
            uint64_t id;
            uint32_t ref;
            uint16_t length;
            uint8_t operation;
        };
        struct template_response {
            uint64_t id;
            uint32_t value;
            int16_t status;
        };
        DEFINE_RING_TYPES(template, struct template_request, struct template_response);
    """

    features = MappingProxyType({"feature-nap": 1, "max-nap": 1000})

    # Frontends that must be refused, one for each way to break the rules of `connect`.
    bad_keys = ({"max-nap": "soon"}, {"max-nap": -1}, {"max-nap": LONGEST + 1})

    def examples(self) -> Sequence[Example[Request, Response]]:
        # A request, its answer, the page before and after.  Ids and references are filled in.
        return [
            Example(Request(0, 0, 5, REVERSE), Response(0, 0, 0), b"hello!", b"olleh!"),
            Example(Request(0, 0, 3, SUM), Response(0, 6, 0), b"\x01\x02\x03\x04"),
            Example(Request(0, 0, 4096, REVERSE), Response(0, 0, 0), b"x", b"x".rjust(4096, b"\0")),
            Example(Request(0, 0, 4096, SUM), Response(0, 255, 0), b"\xff"),
            Example(Request(0, 0, 4097, REVERSE), Response(0, 0, -errno.EINVAL), b"x"),
            Example(Request(0, 0, 4097, SUM), Response(0, 0, -errno.EINVAL), b"x"),
            Example(Request(0, 0, LONGEST + 1, NAP), Response(0, 0, -errno.EINVAL)),
            Example(Request(0, 0, 0, 9), Response(0, 0, -errno.EOPNOTSUPP)),
            # Which nap it is depends on those before it.
            Example(Request(0, 0, 200, NAP), Response(0, 1, 0), depends=True),
            Example(Request(0, 0, 0, NAP), Response(0, 2, 0), depends=True),
        ]


def test_the_frontend(capsys: pytest.CaptureFixture[str]) -> None:
    """Yours, which the suite knows nothing of."""

    async def run() -> None:
        async with both(Template, features={"max-nap": 500}) as device:
            await ask(device)

    asyncio.run(run())
    assert capsys.readouterr().out == "b'olleh' 532 nap 1\n"
