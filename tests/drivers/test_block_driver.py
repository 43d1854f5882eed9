# SPDX-License-Identifier: MIT
"""What `xenpy attach block` writes, and the numbers of virtual disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenpy.drivers.block.driver import DRIVER
from xenpy.drivers.block.vdev import parse_vdev


@pytest.mark.parametrize(
    ("name", "number"),
    [
        # xen-vbd-interface(7).
        ("xvda", 51712), ("xvdb", 51728), ("xvda1", 51713), ("xvdp15", 51967),
        ("xvdq", 268439552), ("xvdaa", 268442112), ("xvda16", 268435472),
        ("sda", 2048), ("sdb1", 2065), ("hda", 768), ("hdb", 832), ("hdc", 5632), ("hdd1", 5697),
        ("51712", 51712),
    ],
)  # fmt: skip
def test_vdev_numbers(name: str, number: int) -> None:
    assert parse_vdev(name) == number


@pytest.mark.parametrize(
    "name", ["", "xvd", "vda", "xvdA", "hde", "sdq", "sda16", "hda64", "xvda256", "-1", "0x10",
             "99999999999", "xvdaaaaa", "٣"],
)  # fmt: skip
def test_what_is_no_vdev(name: str) -> None:
    with pytest.raises(ValueError, match="vdev"):
        parse_vdev(name)


def test_the_nodes_of_a_disk() -> None:
    plan = DRIVER.plan({"vdev": "xvda", "target": "/srv/a.img"}, "vbd3")
    assert (plan.frontend_kind, plan.backend_kind, plan.devid) == ("vbd", "vbd3", 51712)
    assert plan.backend_keys == {
        "dev": "xvda", "mode": "w", "device-type": "disk", "type": "tap", "removable": 0,
        "discard-enable": 1, "params": "aio:/srv/a.img",
    }  # fmt: skip
    assert plan.frontend_keys == {"virtual-device": 51712, "device-type": "disk"}


def test_blocks_are_given_back_unless_the_operator_says_otherwise() -> None:
    """As libxl does: the default is on for a disk that can be written (libxl_disk.c)."""
    words = {"vdev": "xvda", "target": "/a"}
    for more, expected in (
        ({"mode": "r"}, 0), ({"discard-enable": "0"}, 0), ({"discard-enable": "1"}, 1),
    ):  # fmt: skip
        plan = DRIVER.plan({**words, **more}, "vbd3")
        assert plan.backend_keys["discard-enable"] == expected


@pytest.mark.parametrize(
    ("target", "params"),
    [
        ("memory:64M", "aio:memory:64M"),
        ("nbd://host/a,b", "aio:nbd://host/a,b"),
        ("nbd+unix:///x?socket=/s", "aio:nbd+unix:///x?socket=/s"),
        ("python:/srv/a.py:A?b=1", "aio:python:/srv/a.py:A?b=1"),
        ("image", f"aio:{Path.cwd()}/image"),
        ("qcow2:/a", f"aio:{Path.cwd()}/qcow2:/a"),
        ("", ""),
    ],
)
def test_a_target_arrives_as_params(target: str, params: str) -> None:
    plan = DRIVER.plan({"vdev": "xvda", "target": target}, "vbd3")
    assert plan.backend_keys["params"] == params


def test_a_disk_s_filters_are_a_key() -> None:
    plan = DRIVER.plan({"vdev": "xvda", "filter": "stats delay,read=5"}, "vbd3")
    assert plan.backend_keys["filter"] == "stats delay,read=5"


@pytest.mark.parametrize(
    "words",
    [
        {}, {"target": "/a"}, {"vdev": "vda"}, {"vdev": "xvda", "mode": "rw"},
        {"vdev": "xvda", "device-type": "tape"}, {"vdev": "xvda", "discard-enable": "yes"},
        {"vdev": "xvda", "ramdisk": "1"},
        {"vdev": "xvda", "filter": "slow"}, {"vdev": "xvda", "target": "memory:lots"},
    ],
    ids=str,
)  # fmt: skip
def test_words_that_make_no_sense(words: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        DRIVER.plan(words, "vbd3")
