# SPDX-License-Identifier: MIT
"""Paths and permissions of XenStore: what is taken, what is refused, there and back."""

from __future__ import annotations

import errno
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xenpy.errors import XenError
from xenpy.paths import (
    ABS_PATH_MAX,
    REL_PATH_MAX,
    BackendPath,
    Permission,
    Permissions,
    backend_path,
    check_path,
    domain_path,
    frontend_path,
    is_special,
    parse_backend_path,
)
from xenpy.types import DOM0, DOMID_FIRST_RESERVED, DevId, DomId

ALLOWED = set(string.ascii_letters + string.digits + "-/_@")
domids = st.integers(0, DOMID_FIRST_RESERVED - 1).map(DomId)
devids = st.integers(0, 2**32 - 1).map(DevId)
kinds = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=64)
permissions = st.builds(Permission, domids, st.booleans(), st.booleans())


# ------------------------------------------------------------------ paths


def is_path(text: str) -> bool:
    """docs/misc/xenstore.txt, "Paths", said once more, name by name."""
    if text == "/":
        return True
    names = text.removeprefix("/").split("/")
    limit = ABS_PATH_MAX if text.startswith("/") else REL_PATH_MAX
    return all(names) and set(text) <= ALLOWED and len(text) <= limit and not text.startswith("@")


@given(st.text("ab/@-_.:é\0 ", max_size=12) | st.text(max_size=30))
@example("")
@example("/")
@example("//")
@example("/a/")
@example("a/b")
@example("@")
@example("/local/domain/0\0/more")
@example("/local/domain/0\n")
@example("a\n")
@example("/a٣")
def test_a_path_is_taken_as_it_is_or_refused(text: str) -> None:
    if is_path(text):
        assert check_path(text) == text.encode()
    else:
        with pytest.raises(XenError) as caught:
            check_path(text)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(("start", "limit"), [("/", ABS_PATH_MAX), ("", REL_PATH_MAX)])
def test_the_longest_path_is_taken_and_no_longer_one(start: str, limit: int) -> None:
    longest = start.ljust(limit, "a")
    assert check_path(longest) == longest.encode()
    with pytest.raises(XenError, match=f"longer than {limit} bytes"):
        check_path(longest + "a")


@pytest.mark.parametrize("name", ["@releaseDomain", "@introduceDomain", "@releaseDomain/7"])
def test_a_special_path_is_taken_where_it_makes_sense(name: str) -> None:
    assert is_special(name)
    assert check_path(name, special=True) == name.encode()
    with pytest.raises(XenError, match="special"):
        check_path(name)


@pytest.mark.parametrize(
    "name", ["@", "@7", "@releaseDomain/", "@releaseDomain/x", "@releaseDomain\n", "@a/123456"]
)
def test_a_special_path_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(XenError, match="special"):
        check_path(name, special=True)


@given(domids, kinds, domids, devids)
def test_the_path_of_a_backend_comes_back(
    backend_domid: DomId, kind: str, domid: DomId, devid: DevId
) -> None:
    path = backend_path(backend_domid, kind, domid, devid)
    assert check_path(path)
    assert parse_backend_path(path) == BackendPath(backend_domid, kind, domid, devid)
    assert path.startswith(f"{domain_path(backend_domid)}/backend/{kind}/")
    assert check_path(frontend_path(domid, kind, devid)).startswith(domain_path(domid).encode())


segments = st.sampled_from(
    ["", "local", "domain", "backend", "0", "7", "07", "+7", "٣", "32752", "99999", "vbd", "vbé",
     "..", "vbd3\n", "51712", "51712\n", "12345678901", "-1", "x" * 65]
)  # fmt: skip


@given(
    st.tuples(segments, segments, segments, segments).map(
        lambda names: "/local/domain/{}/backend/{}/{}/{}".format(*names)
    )
    | st.lists(segments, max_size=9).map("/".join)
)
@example("/local/domain/0/backend/vbd/7/51712")
@example("/local/domain/0/backend/vbé/7/51712")
@example("/local/domain/32752/backend/vbd/7/51712")
def test_nothing_else_is_the_path_of_a_backend(path: str) -> None:
    try:
        parsed = parse_backend_path(path)
    except ValueError:
        return
    assert str(parsed) == path, "one device has one name"
    assert is_path(path)
    assert 0 <= parsed.domid < DOMID_FIRST_RESERVED
    assert 0 <= parsed.backend_domid < DOMID_FIRST_RESERVED


@pytest.mark.parametrize(
    "path",
    [
        "/local/domain/0/backend/vbd/07/51712",
        "/local/domain/0/backend/vbd/7/051712",
        "/local/domain/0/backend/vbd/32752/51712",
        "/local/domain/32752/backend/vbd/7/51712",
        "/local/domain/0/backend/vbd/٣/51712",
        "/local/domain/0/backend/vbé/7/51712",
        "/local/domain/0/backend//7/51712",
        "/local/domain/0/backend/vbd/7/51712/",
        "/local/domain/0/backend/vbd/7/51712\n",
        "/local/domain/0/backend/vbd/7",
        "local/domain/0/backend/vbd/7/51712",
        "",
    ],
)
def test_a_path_that_xl_would_not_write_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no path of a backend"):
        parse_backend_path(path)


# ------------------------------------------------------------------ permissions


@given(st.lists(permissions, min_size=1, max_size=8).map(Permissions))
def test_permissions_come_back_from_text_and_from_the_wire(perms: Permissions) -> None:
    assert Permissions.parse(str(perms)) == perms
    assert Permissions.parse(perms.encode().decode()) == perms
    assert perms.encode().count(b"\0") == len(perms)
    assert perms.owner == perms[0].domid


@pytest.mark.parametrize(
    ("text", "read", "write"),
    [("n7", False, False), ("r7", True, False), ("w7", False, True), ("b7", True, True)],
)
def test_a_letter_says_what_is_allowed(text: str, read: bool, write: bool) -> None:
    assert Permissions.parse(text) == (Permission(DomId(7), read, write),)


@pytest.mark.parametrize(
    "text",
    ["", ",", "n0,", ",n0", "n", "0", "x0", "N0", "n-1", "n 0", "n0 ", "n0\n", "n٣", "n123456"],
)
def test_what_is_no_permission_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no permission"):
        Permissions.parse(text)


def test_permissions_have_an_owner() -> None:
    with pytest.raises(ValueError, match="owner"):
        Permissions([])
    assert Permissions.parse("n0,r7").owner == DOM0
