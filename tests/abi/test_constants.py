# SPDX-License-Identifier: MIT
"""Numbers that are written down in Python, against the installed Xen headers."""

from __future__ import annotations

from pathlib import Path

from compiling import compile_c
from conformance import handles_suite as suite
from xenpy import evtchn, gnttab, paths, types
from xenpy.types import XenbusState

CONSTANTS = {
    "DOMID_FIRST_RESERVED": types.DOMID_FIRST_RESERVED,
    "DOMID_SELF": types.DOMID_SELF,
    "VIRQ_DOM_EXC": evtchn.VIRQ_DOM_EXC,
    "VIRQ_DEBUG": suite.VIRQ_DEBUG,
    "NR_VIRQS": suite.NR_VIRQS,
    "GNTST_okay": gnttab.GNTST_OKAY,
    "GNTST_eagain": gnttab.GNTST_EAGAIN,
    "GNTST_general_error": suite.GNTST_GENERAL_ERROR,
    "GNTST_bad_domain": suite.GNTST_BAD_DOMAIN,
    "GNTST_bad_gntref": suite.GNTST_BAD_GNTREF,
    "XENSTORE_ABS_PATH_MAX": paths.ABS_PATH_MAX,
    "XENSTORE_REL_PATH_MAX": paths.REL_PATH_MAX,
    **{f"XenbusState{state.name.title().replace('_', '')}": int(state) for state in XenbusState},
}


def test_the_headers_have_the_same_numbers(tmp_path: Path) -> None:
    source = tmp_path / "constants.c"
    checks = (
        f'_Static_assert((long long)({name}) == {value}LL, "{name}");'
        for name, value in CONSTANTS.items()
    )
    headers = ("stdint.h", "xen/xen.h", "xen/grant_table.h", "xen/io/xenbus.h", "xen/io/xs_wire.h")
    lines = [*(f"#include <{header}>" for header in headers), *checks]
    source.write_text("\n".join(lines) + "\n")
    compile_c(source, tmp_path / "constants.o", "-c")
