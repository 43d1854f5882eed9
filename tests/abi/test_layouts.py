# SPDX-License-Identifier: MIT
"""Records as xenpy lays them out against offsetof and sizeof of the installed headers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from compiling import compile_c
from xenpy.drivers.block.protocol import (
    ABI_X86_32,
    ABI_X86_64,
    DISCARD_FIELDS,
    INDIRECT_FIELDS,
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    SEGMENT_FIELDS,
    SEGMENT_SIZE,
    Abi,
)
from xenpy.wire import CAbi, Record

C_TYPES = {
    "b": "int8_t", "B": "uint8_t", "h": "int16_t", "H": "uint16_t",
    "i": "int32_t", "I": "uint32_t", "q": "int64_t", "Q": "uint64_t",
}  # fmt: skip
# i386 is x86_64 with 64-bit fields aligned to 4: what Linux's blkback writes as
# __attribute__((__packed__)), and what -m32 does, which needs a second C library.
PACKING = {CAbi.X86_32: "#pragma pack(push, 4)", CAbi.X86_64: ""}


def ask(tmp_path: Path, abi: CAbi, before: str, expressions: list[str]) -> list[int]:
    """The values of C expressions."""
    source = tmp_path / "layout.c"
    prints = "\n".join(f'    printf("%zu\\n", (size_t)({text}));' for text in expressions)
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n"
        "#define xen_mb()\n#define xen_rmb()\n#define xen_wmb()\n"
        f"{PACKING[abi]}\n{before}\nint main(void)\n{{\n{prints}\n    return 0;\n}}\n"
    )
    program = compile_c(source, tmp_path / "layout")
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return [int(line) for line in out.split()]


def questions(struct: str, record: Record, names: dict[str, str]) -> list[str]:
    return [f"sizeof({struct})", *(f"offsetof({struct}, {names[n]})" for n in record.offsets)]


def answers(record: Record) -> list[int]:
    return [record.size, *record.offsets.values()]


@pytest.mark.parametrize(
    ("abi", "layout"), [(ABI_X86_32, CAbi.X86_32), (ABI_X86_64, CAbi.X86_64)], ids=str
)
def test_blkif_h(tmp_path: Path, abi: Abi, layout: CAbi) -> None:
    request = {name: name for name in REQUEST_FIELDS}
    response = {name: name for name in RESPONSE_FIELDS}
    segment = {name: name for name in SEGMENT_FIELDS}
    discard = {name: name for name in DISCARD_FIELDS}
    indirect = {name: name for name in INDIRECT_FIELDS}
    expressions = [
        *questions("blkif_request_t", abi.header, request)[1:],
        "offsetof(blkif_request_t, seg)",
        "sizeof(blkif_request_t)",
        *questions("blkif_response_t", abi.reply, response),
        *questions("struct blkif_request_segment", abi.segment, segment),
        *questions("blkif_request_discard_t", abi.discard, discard),
        # Without its size: what makes it a multiple of 64 differs, and is within the slot.
        *questions("blkif_request_indirect_t", abi.indirect, indirect)[1:],
    ]
    assert ask(
        tmp_path, layout, "#include <xen/xen.h>\n#include <xen/io/blkif.h>", expressions
    ) == [
        *answers(abi.header)[1:],
        abi.header.size,
        abi.layout.request_size,
        *answers(abi.reply),
        *answers(abi.segment),
        *answers(abi.discard),
        *answers(abi.indirect)[1:],
    ]
    # What is refused is answered with the id, which all kinds of request have in one place.
    offsets = [record.offsets["id"] for record in (abi.header, abi.discard, abi.indirect)]
    assert len(set(offsets)) == 1
    assert abi.segment.size == SEGMENT_SIZE


@pytest.mark.parametrize("abi", list(CAbi))
def test_random_records_are_laid_out_as_the_compiler_does(tmp_path: Path, abi: CAbi) -> None:
    """Fifty structures in one program."""
    import random

    rng = random.Random(5)
    before, expressions, expected = "", [], []
    for number in range(50):
        codes = [rng.choice(list(C_TYPES)) for _ in range(rng.randint(1, 9))]
        record = Record(abi, {f"f{place}": code for place, code in enumerate(codes)})
        fields = " ".join(f"{C_TYPES[code]} f{place};" for place, code in enumerate(codes))
        before += f"struct s{number} {{ {fields} }};\n"
        expressions += questions(f"struct s{number}", record, {n: n for n in record.offsets})
        expected += answers(record)
    assert ask(tmp_path, abi, before, expressions) == expected


@seed(6)
@given(st.lists(st.sampled_from("BHIQ"), min_size=1, max_size=6), st.data())
def test_a_record_comes_back_and_its_padding_is_zero(codes: list[str], data: st.DataObject) -> None:
    record = Record(CAbi.X86_64, {f"f{place}": code for place, code in enumerate(codes)})
    sizes = {"B": 1, "H": 2, "I": 4, "Q": 8}
    values = [data.draw(st.integers(0, 2 ** (8 * sizes[code]) - 1)) for code in codes]
    packed = record.pack(*values)
    assert list(record.unpack(packed)) == values
    used = {
        place
        for code, start in zip(codes, record.offsets.values(), strict=True)
        for place in range(start, start + sizes[code])
    }
    assert all(packed[place] == 0 for place in range(record.size) if place not in used)


def test_a_field_of_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match="code 'x'"):
        Record(CAbi.X86_64, {"pad": "x"})
