# SPDX-License-Identifier: MIT
"""What Prometheus reads of a daemon in dom0, by the parser of its own client."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.dom0_disk import attached
from xenpy.metrics import MEANINGS
from xenpy.vm import disk

SIZE = 8 << 20
PORT = 9123


def scrape() -> dict[tuple[str, str], float]:
    """The value of each metric of a device, by name and domid."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=PATIENCE) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name, sample.labels["domid"]): sample.value
        for family in families
        for sample in family.samples
        if "domid" in sample.labels
    }


def test_a_scrape_in_dom0(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    with DaemonProcess(tmp_path, "--metrics", f"127.0.0.1:{PORT}") as daemon:
        assert scrape() == {}
        with attached(str(image), SIZE // 512) as path:
            disk.run("dd", "if=/dev/zero", f"of={path}", "bs=64k", "count=32", "oflag=direct")
            disk.run("dd", f"if={path}", "of=/dev/null", "bs=64k", "count=16", "iflag=direct")
            found = scrape()
            (counters,) = daemon.devices().values()
            for name in MEANINGS:
                assert found[f"xenpy_{name}_total", "0"] == counters[name], name
            assert found["xenpy_wr_sect_total", "0"] >= 32 * 128
            assert found["xenpy_device_connected", "0"] == 1
            print(found)
