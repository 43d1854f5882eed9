# SPDX-License-Identifier: MIT
"""The C side: CFFI in API mode.  Nothing outside this package imports a compiled module.

`stable` and `xenctrl` hand out typed `ffi` and `lib`; `build` compiles them.
"""
