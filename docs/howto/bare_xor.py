# SPDX-License-Identifier: MIT
"""The backend of xor.py without the framework: the keys come by hand, and one wait does for all."""

from select import select

from xor import Response, Xor

from xenpy.backend import XenAccess
from xenpy.ring import BackRing
from xenpy.types import DomId, GrantRef, Port


def serve(xen: XenAccess, domid: DomId, ref: GrantRef, remote: Port, patience: float) -> None:
    codec = Xor.protocol.codec()
    with xen.open_grants() as grants, xen.open_evtchn() as channels:
        ring = BackRing(grants.map(domid, [ref]), codec.layout)
        port = channels.bind_interdomain(domid, remote)
        while select([channels], [], [], patience)[0]:
            while slots := ring.take() or (ring.take() if ring.final_check() else []):
                for request in map(codec.request, slots):
                    with grants.map(domid, [GrantRef(request.ref)]) as page, page.view() as view:
                        view[:] = bytes(byte ^ request.key for byte in view)
                    if ring.push([codec.pack_response(Response(request.id, 0))]):
                        channels.notify(port)
            channels.unmask(channels.pending())
