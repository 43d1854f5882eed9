# SPDX-License-Identifier: MIT
"""The page of a protocol says what the compiler, the store and the drivers do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from compiling import FLAGS
from fences import ROOT
from xenpy.attach import endpoints
from xenpy.cli.main import main
from xenpy.protocol_page import page_of, width_of
from xenpy.protocol_text import c_header, c_name
from xenpy.ring_backend import Backend
from xenpy.ring_protocol import RingProtocol
from xenpy.testing.ring import pair
from xenpy.testing.world import fakes
from xenpy.types import DOM0, DevId
from xenpy.wire import CAbi, i8, i16, i32, i64, u8, u16, u32, u64

HOWTO = ROOT / "docs/howto"
WIDTHS: Mapping[str, Any] = {
    "i8": i8, "u8": u8, "i16": i16, "u16": u16, "i32": i32, "u32": u32, "i64": i64, "u64": u64,
}  # fmt: skip
# i386 is x86_64 with 64-bit fields aligned to 4: see tests/abi/test_layouts.py.
PACKING = {CAbi.X86_32: "#pragma pack(push, 4)", CAbi.X86_64: ""}


class Request(NamedTuple):
    id: u64


class Response(NamedTuple):
    id: u64
    status: i16


class Lamp(Backend[Request, Response]):
    protocol = RingProtocol("lamp", Request, Response)
    features = {"max-level": 10}  # noqa: RUF012 - as the documentation has it

    def handle(self, request: Request) -> Response:
        return Response(request.id, 0)


@contextmanager
def imported_nothing() -> Iterator[None]:
    """`xenpy protocol` runs files, which Python remembers."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if not name.startswith("xenpy"):
                del sys.modules[name]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with imported_nothing():
        assert main(["protocol", *words]) == 0
    return capsys.readouterr().out


def test_the_page_in_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    """After a change: xenpy protocol docs/howto/xor.py > docs/howto/xor-protocol.md"""
    assert printed(capsys, f"{HOWTO}/xor.py") == (HOWTO / "xor-protocol.md").read_text()


def test_its_tables_line_up() -> None:
    lines = (HOWTO / "xor-protocol.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 40
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            places = [[at for at, char in enumerate(row) if char == "|"] for row in (above, below)]
            assert places[0] == places[1]


def test_json_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    page = json.loads(printed(capsys, f"{HOWTO}/xor.py", "--json"))
    assert page["request"]["fields"] == {"id": "u64", "ref": "u32", "key": "u8"}
    layouts = page["response"]["layouts"]
    assert layouts["x86_32-abi"] == {
        "size": 12, "offsets": {"id": 0, "status": 8}, "padding": [[10, 2]],
    }  # fmt: skip
    assert layouts["x86_64-abi"]["padding"] == [[10, 6]]
    assert page["entries"] == {"x86_32-abi": 128, "x86_64-abi": 128}
    assert page["connecting"][-1][:2] == ["Connected", "Connected"]
    assert page["closing"][-1][:2] == ["Closed", "Closed"]
    assert page["backend"]["table"]["InitWait"]["Initialised"] == "CONNECT"


def test_the_records_in_c_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, f"{HOWTO}/xor.py", "--c")
    assert text.startswith("struct xor_request {\n    uint64_t id;\n")
    assert text in (HOWTO / "xor-protocol.md").read_text()


ALONE = """
from typing import NamedTuple
from xenpy import RingProtocol
from xenpy.wire import i16, u64
class Request(NamedTuple):
    id: u64
class Response(NamedTuple):
    id: u64
    status: i16
A = RingProtocol("a", Request, Response)
"""


@pytest.mark.parametrize(
    ("more", "name", "begins"),
    [
        ("", "", "# a\n"),
        ("B = RingProtocol('b', Request, Response)", ":B", "# b\n"),
        ("B = RingProtocol('b', Request, Response)", "", None),
        ("", ":C", None),
        ("del A", "", None),
    ],
)
def test_a_file_without_a_backend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, name: str, begins: str | None
) -> None:
    (tmp_path / "alone.py").write_text(ALONE + more)
    if begins is not None:
        assert printed(capsys, f"{tmp_path}/alone.py{name}").startswith(begins)
        return
    with imported_nothing():
        assert main(["protocol", f"{tmp_path}/alone.py{name}"]) == 2
    assert "choose from" in capsys.readouterr().err


def test_the_keys_are_those_that_there_are() -> None:
    """All of them, on both sides, once the device is connected."""
    page = page_of(Lamp.protocol, Lamp.features)

    async def keys() -> list[set[str]]:
        async with fakes() as world, pair(world, Lamp, Lamp.protocol):
            ends = endpoints(world.domid, "lamp", "lamp", DevId(0), DOM0)
            return [set(await world.store.list(path)) for path in (ends.frontend, ends.backend)]

    frontend, backend = asyncio.run(keys())
    assert {key.name for key in page.frontend_keys} == frontend
    # What `xenpy attach` writes for itself is no part of a protocol.
    assert {key.name for key in page.backend_keys} == backend - {"xenpy-attached"}
    assert next(key.value for key in page.backend_keys if key.name == "max-level") == "10"


def test_the_keys_of_a_ring_of_several_pages() -> None:
    large = RingProtocol("lamp", Request, Response, max_ring_page_order=2)
    page = page_of(large)
    named = {key.name: key.value for key in (*page.frontend_keys, *page.backend_keys)}
    assert named["max-ring-page-order"] == "2"
    assert named["ring-page-order"].startswith("0 to 2")


def test_the_keys_of_several_rings() -> None:
    page = page_of(RingProtocol("lamp", Request, Response, max_rings=8))
    named = {key.name: key.value for key in (*page.frontend_keys, *page.backend_keys)}
    assert named["multi-queue-max-queues"] == "8"
    assert named["multi-queue-num-queues"].startswith("1 to 8")


def test_the_widths_have_the_names_of_wire() -> None:
    for name, width in WIDTHS.items():
        assert width_of(width.__metadata__[0]) == (name, int(name[1:]) // 8)


NAMES = st.sampled_from(["ref", "length", "register", "int", "op", "sector", "long", "flags"])


@st.composite
def protocols(draw: st.DrawFn) -> RingProtocol[Any, Any]:
    """Records of up to eight fields each, in any order, with words of C among their names."""
    wide = st.sampled_from(list(WIDTHS.values()))
    ident = draw(st.sampled_from([u8, u16, u32, u64]))
    status = draw(st.sampled_from([i16, i32, i64]))
    asked = draw(st.dictionaries(NAMES, wide, max_size=7)) | {"id": ident}
    told = draw(st.dictionaries(NAMES.map("r_{}".format), wide, max_size=6))
    records = [
        NamedTuple(name, draw(st.permutations(list(fields.items()))))
        for name, fields in (
            ("Request", asked),
            ("Response", told | {"id": ident, "status": status}),
        )
    ]
    return RingProtocol("a-b", *records)


@seed(8)
@settings(
    max_examples=20, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(protocols())
def test_a_compiler_agrees(protocol: RingProtocol[Any, Any]) -> None:
    """Each number of the page as an assertion about the page's own records and io/ring.h."""
    page = page_of(protocol)
    for abi in CAbi:
        claims = [f"sizeof(union a_b_sring_entry) == {page.slot_sizes[abi.protocol]}"]
        claims.append(f"__CONST_RING_SIZE(a_b, 4096) == {page.entries[abi.protocol]}")
        for kind, record in (("request", page.request), ("response", page.response)):
            layout = record.layouts[abi.protocol]
            used = {name: int(width[1:]) // 8 for name, width in record.fields.items()}
            assert sum(used.values()) + sum(length for _, length in layout.padding) == layout.size
            claims.append(f"sizeof(struct a_b_{kind}) == {layout.size}")
            for name, offset in layout.offsets.items():
                claims.append(f"offsetof(struct a_b_{kind}, {c_name(name)}) == {offset}")
        compile_claims(f"{PACKING[abi]}\n{c_header(page)}", claims)


def compile_claims(before: str, claims: list[str]) -> None:
    text = "".join(f'_Static_assert({claim}, "{claim}");\n' for claim in claims)
    with tempfile.NamedTemporaryFile("w", suffix=".c") as file:
        file.write(
            "#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n"
            "#include <xen/xen.h>\n#include <xen/io/ring.h>\n" + before + text
        )
        file.flush()
        done = subprocess.run(
            ["gcc", *FLAGS, "-fsyntax-only", file.name], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, before + done.stderr
