# SPDX-License-Identifier: MIT
"""Errors carry errno, operation, arguments and a hint, and are the builtins one expects."""

from __future__ import annotations

import copy
import errno
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.errors import (
    PeerError,
    StaleHandleError,
    XenConnectionError,
    XenError,
    XenExistsError,
    XenNotFoundError,
    XenPermissionError,
    XenTimeoutError,
    xen_error,
)

numbers = st.sampled_from(sorted(errno.errorcode))


@pytest.mark.parametrize(
    ("number", "kind", "builtin"),
    [
        (errno.ENOENT, XenNotFoundError, FileNotFoundError),
        (errno.EACCES, XenPermissionError, PermissionError),
        (errno.EPERM, XenPermissionError, PermissionError),
        (errno.EEXIST, XenExistsError, FileExistsError),
        (errno.ETIMEDOUT, XenTimeoutError, TimeoutError),
        (errno.ECONNRESET, XenConnectionError, ConnectionError),
        (errno.ECONNREFUSED, XenConnectionError, ConnectionError),
        (errno.EPIPE, XenConnectionError, ConnectionError),
    ],
)
def test_an_errno_becomes_the_builtin_that_python_has_for_it(
    number: int, kind: type[XenError], builtin: type[OSError]
) -> None:
    error = xen_error(number, "operation")
    assert type(error) is kind
    assert isinstance(error, builtin)
    assert isinstance(OSError(number, ""), builtin), "as OSError itself chooses"


@given(numbers)
def test_any_other_errno_is_a_plain_error_with_it(number: int) -> None:
    error = xen_error(number, "operation", "a hint", port=7)
    assert isinstance(error, XenError)
    assert error.errno == number
    assert (error.operation, error.hint, error.arguments) == ("operation", "a hint", {"port": 7})


def test_what_a_port_that_is_not_ours_gives_is_no_lost_connection() -> None:
    """xenstored has nothing to do with ENOTCONN of /dev/xen/evtchn."""
    assert type(xen_error(errno.ENOTCONN, "notify", port=7)) is XenError


def test_the_text_says_what_was_asked_for_and_what_to_do() -> None:
    error = xen_error(errno.EINVAL, "map_grant_refs", domid=7, refs=[8, 9])
    assert str(error) == "[EINVAL] map_grant_refs(domid=7, refs=[8, 9]): Invalid argument"
    error = xen_error(errno.ENOENT, "open", "does xenstored run?")
    assert str(error) == "[ENOENT] open(): No such file or directory (does xenstored run?)"


def test_an_errno_without_a_name_is_shown_as_it_is() -> None:
    assert str(xen_error(9999, "operation")).startswith("[9999] operation(): ")


@given(st.text(max_size=5000))
def test_what_a_peer_has_chosen_does_not_make_the_text_long(value: str) -> None:
    text = str(xen_error(errno.EINVAL, "read", path=value))
    assert len(text) < 80 + len("[EINVAL] read(path=): " + os.strerror(errno.EINVAL)) + 1
    assert "\n" not in text


@given(numbers, st.text(max_size=20), st.dictionaries(st.just("path"), st.text(max_size=20)))
def test_an_error_survives_a_copy_and_another_process(
    number: int, hint: str, arguments: dict[str, str]
) -> None:
    error = xen_error(number, "operation", hint, **arguments)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.args == error.args
        assert (again.operation, again.hint) == (error.operation, error.hint)
        assert again.arguments == error.arguments


def test_a_fault_of_the_peer_is_not_an_error_of_ours() -> None:
    assert not issubclass(PeerError, OSError)
    assert issubclass(StaleHandleError, XenError)
