# SPDX-License-Identifier: MIT
"""What the leak check counts as our processes, while our threads come and go."""

from __future__ import annotations

import subprocess
import sys
import threading

from conformance.xen_env import children

LOOKS = 300


def test_our_children_are_found_while_threads_end() -> None:
    before = set(children())
    done = threading.Event()

    def start_and_end_threads() -> None:
        while not done.is_set():
            for thread in [threading.Thread(target=bool) for _ in range(8)]:
                thread.start()

    churn = threading.Thread(target=start_and_end_threads)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        churn.start()
        try:
            seen = [set(children()) - before for _ in range(LOOKS)]
        finally:
            done.set()
            churn.join()
            child.kill()
    assert all(now <= {child.pid} for now in seen)
    assert {child.pid} in seen
