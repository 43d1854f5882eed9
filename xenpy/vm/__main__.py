# SPDX-License-Identifier: MIT
"""`python3 -m xenpy.vm` is `xenvm`."""

import sys

from xenpy.vm.cli import main

sys.exit(main())
