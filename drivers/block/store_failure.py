# SPDX-License-Identifier: MIT
"""What a store in Python raised: a line in the log, and an errno for the guest's answer."""

from __future__ import annotations

import errno
import traceback
from logging import Logger, LoggerAdapter
from typing import Final

__all__ = ["errno_of"]

LIMIT: Final = 4096
"""MAX_ERRNO of Linux, and one."""


def errno_of(error: Exception, log: LoggerAdapter[Logger], what: str) -> int:
    """Log a failure.  Returns its errno; EIO for what is no OSError, a bug of the store's.

    The log gets text, not the exception: a handler that keeps its records would keep the
    traceback, its frames and so their views of the guest's data.

    Args:
        what: was tried.
    """
    if not isinstance(error, OSError):
        log.error("%s\n%s", what, "".join(traceback.format_exception(error)))
        return errno.EIO
    log.warning("%s: %s", what, str(error))
    number: object = error.errno
    # A store may put anything there.
    return number if isinstance(number, int) and 0 < number < LIMIT else errno.EIO
