# SPDX-License-Identifier: MIT
"""`python3 -m xenpy.cli`."""

from xenpy.cli.main import main

raise SystemExit(main())
