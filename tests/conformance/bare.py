# SPDX-License-Identifier: MIT
"""Drives docs/howto/bare_xor.py, the backend that does without the framework."""

from __future__ import annotations

from select import select
from threading import Thread

from examples import load
from xenpy.backend import XenAccess
from xenpy.frontend import FrontendAccess
from xenpy.ring import FrontRing
from xenpy.types import DomId

__all__ = ["asked_twice"]

PATIENCE = 2.0


def asked_twice(
    backend: XenAccess, frontend: FrontendAccess, ours: DomId, theirs: DomId
) -> list[bytes]:
    """What a page of domain `theirs` holds after each of two requests."""
    bare = load("docs/howto/bare_xor.py")
    protocol = bare["Xor"].protocol
    codec = protocol.codec()
    found: list[bytes] = []
    with frontend.open_share() as share, frontend.open_evtchn() as channels:
        page, data = share.share(ours, 1), share.share(ours, 1)
        ring, port = FrontRing(page, codec.layout), channels.bind_unbound(ours)
        serving = Thread(
            target=bare["serve"], args=(backend, theirs, page.refs[0], port, PATIENCE), daemon=True
        )
        serving.start()
        for ident in (1, 2):
            if ring.put([codec.pack_request(protocol.request(ident, data.refs[0], 0x20))]):
                channels.notify(port)
            while not (answers := ring.take()):
                if not ring.final_check():
                    assert select([channels], [], [], 10 * PATIENCE)[0]
                    channels.unmask(channels.pending())
            assert codec.response(answers[0]) == (ident, 0)
            with data.view(0, 3) as view:
                found.append(bytes(view))
        serving.join(10 * PATIENCE)
        assert not serving.is_alive()
    return found
