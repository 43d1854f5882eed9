# SPDX-License-Identifier: MIT
"""What every backend must do, for xor.py."""

from xor import Request, Response, Xor

from xenpy.testing.conformance import BackendSuite, Example


class TestXor(BackendSuite[Request, Response]):
    backend = Xor
    header = """
        struct xor_request {
            uint64_t id;
            uint32_t ref;
            uint8_t key;
        };
        struct xor_response {
            uint64_t id;
            int16_t status;
        };
        DEFINE_RING_TYPES(xor, struct xor_request, struct xor_response);
    """

    def examples(self) -> list[Example[Request, Response]]:
        zeros = bytes(4096)
        return [
            Example(Request(0, 0, 0x20), Response(0, 0), zeros, b" " * 4096),
            Example(Request(0, 0, 0xFF), Response(0, 0), b"\x0f" * 4096, b"\xf0" * 4096),
        ]
