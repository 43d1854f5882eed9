# SPDX-License-Identifier: MIT
"""What every backend must do, for pigeon.py."""

import errno

from pigeon import MAX_NOTE, Pigeon, Request, Response

from xenpy.testing.conformance import BackendSuite, Example


class TestPigeon(BackendSuite[Request, Response]):
    backend = Pigeon
    features = Pigeon.features
    header = """
        struct pigeon_request {
            uint64_t id;
            uint32_t ref;
            uint16_t length;
        };
        struct pigeon_response {
            uint64_t id;
            uint32_t flight;
            int16_t status;
        };
        DEFINE_RING_TYPES(pigeon, struct pigeon_request, struct pigeon_response);
    """

    def examples(self) -> list[Example[Request, Response]]:
        heavy = Response(0, 0, -errno.EMSGSIZE)
        return [
            Example(Request(0, 0, MAX_NOTE + 1), heavy, b"x" * (MAX_NOTE + 1)),
            Example(Request(0, 0, 5), Response(0, 1, 0), b"hello", depends=True),
            Example(Request(0, 0, MAX_NOTE), Response(0, 2, 0), b"y" * MAX_NOTE, depends=True),
        ]
