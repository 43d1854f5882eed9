# SPDX-License-Identifier: MIT
"""Faults to put into xenpy, one at a time, and the test that must notice each.

Plain data.  `test_faults.py` carries it out, docs/design/seeded-faults.md shows it.

    python -m tests.faults.table        # writes that page again; run it in the checkout's top
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["FAULTS", "PAGE", "ROOT", "Fault", "render"]

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs/design/seeded-faults.md"


@dataclass(frozen=True)
class Fault:
    """One replacement in one file.

    Attributes:
        name: of the fault; the test's parameter.
        file: below the checkout's top.
        old, new: the exact text, once in the file, and what takes its place.
        killer: the test that must fail.
        why: what the fault would do, and the rule or advisory behind it.
        hangs: seconds after which a killer that waits for ever counts as failed, for a lost
            wake-up; None: it must fail by itself.
    """

    name: str
    file: str
    old: str
    new: str
    killer: str
    why: str
    hangs: float | None = None


RING = "xenpy/_ffi/ring_core.h"
DIFFERENTIAL = "tests/abi/test_ring_differential.py"
SAME_PAGES = f"{DIFFERENTIAL}::test_the_same_schedule_leaves_the_same_pages[('large', 1)-0]"
LITMUS = "tests/abi/test_litmus.py::test_no_wake_up_is_lost_in_ten_million_rounds"
UNIT_RING = "tests/unit/test_ring.py"
PROTOCOL = "drivers/block/protocol.py"
UNIT_PROTOCOL = "tests/drivers/test_block_protocol.py"
SUITE = "tests/drivers/test_block_protocol_fake.py"
STORE = "tests/unit/test_store_conformance.py"
HANDLES = "tests/unit/test_handles_fake.py"
RUNTIME = "tests/unit/test_runtime.py"
NODES = "xenpy/device_nodes.py"
LIFE = "tests/unit/test_lifecycle.py"

RING_FAULTS: Final = (
    Fault(
        "ring: no fence after publishing",
        RING,
        "    __atomic_thread_fence(__ATOMIC_SEQ_CST);\n",
        '    __asm__ __volatile__("" ::: "memory");\n',
        LITMUS,
        "ring.h, RING_PUSH_*_AND_CHECK_NOTIFY: `xen_mb()` between our index and the peer's event; "
        "without it both sides may sleep",
    ),
    Fault(
        "ring: no look after arming the event",
        RING,
        "    xenpy_store_release((uint8_t *)shared + XENPY_REQ_EVENT, ring->consumed + 1);\n"
        "    xenpy_fence();\n"
        "    return xenpy_back_available(ring, shared);\n",
        "    xenpy_store_release((uint8_t *)shared + XENPY_REQ_EVENT, ring->consumed + 1);\n"
        "    xenpy_fence();\n"
        "    return 0;\n",
        LITMUS,
        "ring.h, RING_FINAL_CHECK_FOR_REQUESTS: a request that came just before is never seen",
    ),
    Fault(
        "ring: req_event not set",
        RING,
        "    xenpy_store_release((uint8_t *)shared + XENPY_REQ_EVENT, ring->consumed + 1);\n",
        "",
        SAME_PAGES,
        "ring.h, RING_FINAL_CHECK_FOR_REQUESTS: the frontend is never told to notify",
    ),
    Fault(
        "ring: req_event one too far",
        RING,
        "XENPY_REQ_EVENT, ring->consumed + 1);",
        "XENPY_REQ_EVENT, ring->consumed + 2);",
        SAME_PAGES,
        "ring.h, RING_FINAL_CHECK_FOR_REQUESTS: the next request brings no event",
    ),
    Fault(
        "ring: notify decision inverted",
        RING,
        "xenpy_load_acquire(event)) < count;",
        "xenpy_load_acquire(event)) >= count;",
        SAME_PAGES,
        "ring.h, RING_PUSH_*_AND_CHECK_NOTIFY: silent when the peer waits",
    ),
    Fault(
        "ring: always notifies",
        RING,
        "    return (uint32_t)(produced - xenpy_load_acquire(event)) < count;\n",
        "    (void)event;\n    return 1;\n",
        SAME_PAGES,
        "ring.h, event suppression: an interrupt for each response",
    ),
    Fault(
        "ring: never notifies",
        RING,
        "    return (uint32_t)(produced - xenpy_load_acquire(event)) < count;\n",
        "    (void)event;\n    return 0;\n",
        SAME_PAGES,
        "ring.h, RING_PUSH_*_AND_CHECK_NOTIFY: the peer sleeps for ever",
    ),
    Fault(
        "ring: wrong index mask",
        RING,
        "index & (ring->entries - 1);",
        "index % (ring->entries - 1);",
        SAME_PAGES,
        "ring.h, __RING_SIZE: free-running indices are masked by a power of two",
    ),
    Fault(
        "ring: rest of a response slot not zeroed",
        RING,
        "    memset(slot + size, 0, ring->slot_size - size);\n",
        "",
        SAME_PAGES,
        "XSA-216: whatever was in the slot goes to the other side",
    ),
    Fault(
        "ring: req_prod may be any distance ahead",
        RING,
        "    if ((uint32_t)(prod - ring->produced) > ring->entries ||\n"
        "        (uint32_t)(prod - ring->produced) < in_flight)\n",
        "    if ((uint32_t)(prod - ring->produced) < in_flight)\n",
        f"{UNIT_RING}::test_a_full_ring_is_taken_and_one_request_more_is_an_overrun[0]",
        "XSA-39: an endless loop over slots that nobody wrote",
    ),
    Fault(
        "ring: req_prod one too far ahead is taken",
        RING,
        "(prod - ring->produced) > ring->entries ||",
        "(prod - ring->produced) > ring->entries + 1 ||",
        f"{UNIT_RING}::test_a_full_ring_is_taken_and_one_request_more_is_an_overrun[0]",
        "XSA-39: one slot is taken twice",
    ),
    Fault(
        "ring: room counted from what was taken",
        RING,
        "    if ((uint32_t)(prod - ring->produced) > ring->entries ||\n",
        "    if ((uint32_t)(prod - ring->consumed) > ring->entries ||\n",
        f"{UNIT_RING}::test_requests_in_flight_count_against_the_ring[0]",
        "ring.h, RING_REQUEST_PROD_OVERFLOW counts from rsp_prod: unanswered slots are no room",
    ),
    Fault(
        "ring: req_prod may go backwards",
        RING,
        " ||\n        (uint32_t)(prod - ring->produced) < in_flight)\n",
        " || in_flight > ring->entries)\n",
        f"{UNIT_RING}::test_a_producer_that_goes_backwards_is_refused[1-0]",
        "XSA-39: behind what was taken lie requests that were served already",
    ),
    Fault(
        "ring: rsp_prod may be any distance ahead",
        RING,
        "    if (available > (uint32_t)(ring->produced - ring->consumed))\n"
        "        return -EPROTO;\n",
        "",
        f"{UNIT_RING}::test_a_backend_answers_no_more_than_it_was_asked[1-0]",
        "a frontend of a hostile backend: answers to what was never asked (XSA-39's mirror image)",
    ),
    Fault(
        "ring: our own producer index read back",
        RING,
        "    uint32_t produced = ring->produced + count;\n",
        "    uint32_t produced = xenpy_load_acquire(prod) + count;\n",
        f"{UNIT_RING}::test_our_own_index_is_never_read_back",
        "rsp_prod lies in the frontend's page: what a peer may overwrite is never read back",
    ),
    Fault(
        "ring: byte ring's producer unchecked",
        RING,
        "    if (queued > stream->size)\n"
        "        return -EPROTO;\n"
        "    count = queued < limit ? queued : limit;\n",
        "    count = queued < limit ? queued : limit;\n",
        f"{UNIT_RING}::test_a_stream_s_peer_out_of_bounds_is_refused[17-0]",
        "io/console.h: more bytes than a ring holds, read twice",
    ),
)

GRANT_FAULTS: Final = (
    Fault(
        "grants: paged-out page not tried again",
        "xenpy/gnttab.py",
        "        self._retry_paged_out(batch, len(segments))\n",
        "",
        f"{HANDLES}::test_a_page_that_is_paged_out_is_copied_once_it_is_back[1]",
        "grant_table.h, GNTST_eagain: an I/O error for a page that is away for a moment",
    ),
    Fault(
        "grants: paged-out page tried for longer",
        "xenpy/gnttab.py",
        "        for delay in EAGAIN_DELAYS:\n",
        "        for delay in EAGAIN_DELAYS * 2:\n",
        f"{HANDLES}::test_a_page_that_stays_paged_out_keeps_its_status_and_the_others_are_copied",
        "grant_table.h, GNTST_eagain: a guest that pages out holds the queue's thread up",
    ),
    Fault(
        "grants: unmapped under a live view",
        "xenpy/memory.py",
        "        if not self.closed and self.viewed:\n            raise BufferError(",
        "        if False:\n            raise BufferError(",
        f"{HANDLES}::test_a_mapping_cannot_be_closed_under_a_view[slice of a slice]",
        "the next access through the view is SIGSEGV",
    ),
    Fault(
        "handles: second close not harmless",
        "xenpy/handles.py",
        "        if not self._state:\n"
        "            self._release()\n"
        "            self._mark_closed()\n",
        "        self._release()\n        self._mark_closed()\n",
        f"{HANDLES}::test_what_is_closed_is_of_no_use",
        "xenevtchn.h: a handle is freed by close; the second time it is somebody else's memory",
    ),
    Fault(
        "handles: usable after fork",
        "xenpy/handles.py",
        'self._state = "inherited by fork: open one in this process"',
        "pass",
        f"{HANDLES}::test_a_child_of_fork_cannot_use_what_it_inherited",
        "xengnttab.h, xenevtchn.h: after fork a handle may be closed and nothing else",
    ),
    Fault(
        "grants: pages inherited by fork",
        "xenpy/_ffi/shim.c",
        "    return madvise(address, length, MADV_DONTFORK);\n",
        "    return madvise(address, length, MADV_DOFORK);\n",
        f"{HANDLES}::test_a_view_in_a_child_of_fork_reaches_nothing",
        "the guest's pages stay mapped in a child after we have let go",
    ),
    Fault(
        "grants: status of a copy ignored",
        "drivers/block/datapath.py",
        "            if status != 0 and job.status == RSP_OKAY:\n",
        "            if False:\n",
        f"{SUITE}::test_g1_a_bad_reference_fails_its_request_only[0-0-copied]",
        "XSA-361's rule: the pieces of a batch fail one by one; success is claimed for data that "
        "never moved",
    ),
    Fault(
        "grants: evicted pages stay mapped",
        "drivers/block/grant_cache.py",
        "        self._deferred.close(extent.mapping, self._owner)\n",
        "",
        "tests/drivers/test_block_grant_cache.py::test_evicted_pages_are_really_unmapped",
        "a guest that uses ever new pages exhausts maptrack for all",
    ),
    Fault(
        "grants: cache without a bound",
        "drivers/block/grant_cache.py",
        "            if not self._make_room(len(extent)):\n                return\n",
        "",
        f"{SUITE}::test_g4_the_cache_is_bounded_and_evicts_the_oldest",
        "blkback's max_persistent_grants: a guest exhausts maptrack for all",
    ),
)

BLOCK_FAULTS: Final = (
    Fault(
        "block: slot looked at a second time",
        "drivers/block/queue.py",
        "        accepted = [item for item in parsed if isinstance(item, Request)]\n",
        """\
        from dataclasses import replace

        from xenpy.drivers.block.protocol import Segment

        state, size, seg = self._ring._state, abi.layout.slot_size, abi.segment
        for number, item in enumerate(parsed):
            if isinstance(item, Request):
                index = (state.consumed - len(slots) + number) % self._ring.entries
                with self._ring._memory.view(64 + index * size, size) as view:
                    raw = bytes(view)[abi.header.size :][: seg.size * len(item.segments)]
                again = [Segment(*fields) for fields in seg.iter_unpack(raw)]
                parsed[number] = replace(item, segments=again)
        accepted = [item for item in parsed if isinstance(item, Request)]
""",
        f"{SUITE}::test_r3_slots_that_turn_evil_once_they_are_checked[copied]",
        "XSA-155: checked in one version, carried out in another",
    ),
    Fault(
        "block: final check left out",
        "drivers/block/queue.py",
        "        if not slots and self._ring.final_check():\n"
        "            slots = self._ring.take(BATCH_LIMIT)\n",
        "",
        f"{SUITE}::test_a_frontend_may_come_back",
        "ring.h, RING_FINAL_CHECK_FOR_REQUESTS: nobody asks for the next event, both sides sleep",
        hangs=10.0,
    ),
    Fault(
        "block: end of the disk off by one",
        PROTOCOL,
        "sector + sectors > disk.sectors:",
        "sector + sectors > disk.sectors + 1:",
        f"{UNIT_PROTOCOL}::test_beyond_the_end[993-0-x86_64-abi]",
        "blkif.h, sector_number: a read behind the image, a write that makes it grow",
    ),
    Fault(
        "block: sector sum wraps at 64 bits",
        PROTOCOL,
        "        if sectors and sector + sectors > disk.sectors:\n",
        "        if sectors and (sector + sectors) % 2**64 > disk.sectors:\n",
        f"{UNIT_PROTOCOL}::test_beyond_the_end[18446744073709551608-0-x86_64-abi]",
        "blkif.h, sector_number: 2^64 - 8 and 8 sectors are within every disk",
    ),
    Fault(
        "block: no segments accepted",
        PROTOCOL,
        " or (nr_segments == 0 and operation != OP_FLUSH_DISKCACHE):",
        ":",
        f"{UNIT_PROTOCOL}::test_segment_counts[0-0-x86_64-abi]",
        "blkif.h, nr_segments: a read of nothing",
    ),
    Fault(
        "block: twelve segments accepted",
        PROTOCOL,
        "        if nr_segments > MAX_SEGMENTS or",
        "        if nr_segments > MAX_SEGMENTS + 1 or",
        f"{UNIT_PROTOCOL}::test_segment_counts[12-0-x86_64-abi]",
        "blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST: beyond the slot (XSA-155)",
    ),
    Fault(
        "block: first sector behind the last",
        PROTOCOL,
        "            if first > last or last > LAST_SECTOR_OF_PAGE:\n",
        "            if last > LAST_SECTOR_OF_PAGE:\n",
        f"{UNIT_PROTOCOL}::test_sectors_that_are_not_in_a_page[0-7-6-x86_64-abi]",
        "blkif.h, first_sect: a negative length",
    ),
    Fault(
        "block: last sector behind the page",
        PROTOCOL,
        "            if first > last or last > LAST_SECTOR_OF_PAGE:\n",
        "            if first > last:\n",
        f"{UNIT_PROTOCOL}::test_sectors_that_are_not_in_a_page[0-0-8-x86_64-abi]",
        "blkif.h, last_sect: bytes of the page behind, which may be another's",
    ),
    Fault(
        "block: read-only disk written",
        PROTOCOL,
        "        if disk.readonly and sectors and operation != OP_READ:\n",
        "        if disk.readonly and sectors and operation == OP_FLUSH_DISKCACHE:\n",
        f"{UNIT_PROTOCOL}::test_a_write_to_a_read_only_disk[x86_64-abi]",
        "blkif.h, VDISK_READONLY: a promise to the operator, kept against the guest (XSA-142)",
    ),
    Fault(
        "block: padding of x86_32 as of x86_64",
        "xenpy/wire.py",
        "            align = min(size, abi.value)\n",
        "            align = size\n",
        f"{UNIT_PROTOCOL}::test_sizes_and_offsets_as_blkif_h_has_them",
        "io/protocols.h: i386 aligns 64-bit fields to 4",
    ),
    Fault(
        "block: a number read as C's strtoul reads it",
        "drivers/block/frontend_keys.py",
        "    plain = text.isascii() and text.isdigit() and len(text) <= 10\n",
        '    text = str(int(text, 16)) if text.startswith("0x") else text.strip()\n'
        "    plain = text.isascii() and text.isdigit() and len(text) <= 10\n",
        f"{UNIT_PROTOCOL}::test_values_that_are_no_plain_numbers[0x10-ring-ref]",
        "what one parser takes and another refuses: hostile text in ring-ref",
    ),
    Fault(
        "block: spaces around a number",
        "drivers/block/frontend_keys.py",
        "    plain = text.isascii() and text.isdigit() and len(text) <= 10\n",
        "    plain = text.isascii() and text.strip().isdigit() and len(text) <= 10\n",
        f"{UNIT_PROTOCOL}::test_values_that_are_no_plain_numbers[ 5-ring-ref]",
        "Python's int() takes what no frontend means",
    ),
    Fault(
        "block: one page twice in a ring",
        "drivers/block/frontend_keys.py",
        "        if len(set(refs)) != len(refs):\n",
        "        if False:\n",
        f"{SUITE}::test_r7_the_same_page_twice_in_a_ring",
        "two slots in one place: a request changes under its copy",
    ),
    Fault(
        "block: failed flush forgotten",
        "drivers/block/store.py",
        "            self._lost = error\n",
        "            pass\n",
        "tests/drivers/test_block_store.py::test_a_failed_flush_is_never_forgotten",
        "fsync(2) reports a lost write once; the next flush would claim that it is safe",
    ),
    Fault(
        "block: flush before the writes",
        "drivers/block/datapath.py",
        "            if neighbours and (flush or not _follows("
        "neighbours[-1].request, job.request)):\n"
        "                self._transfer(neighbours)\n"
        "                neighbours = []\n"
        "            if flush:\n"
        "                self._flush(job)\n",
        "            if flush:\n"
        "                self._flush(job)\n"
        "            if neighbours and (flush or not _follows("
        "neighbours[-1].request, job.request)):\n"
        "                self._transfer(neighbours)\n"
        "                neighbours = []\n",
        f"{SUITE}::test_a_flush_follows_the_writes_of_its_batch",
        "blkif.h, BLKIF_OP_FLUSH_DISKCACHE: what the guest wrote before is lost with the power",
    ),
    Fault(
        "block: flush as a neighbour of a write",
        "drivers/block/datapath.py",
        "(flush or not _follows(neighbours[-1].request, job.request))",
        "not _follows(neighbours[-1].request, job.request)",
        f"{SUITE}::test_a_flush_follows_the_writes_of_its_batch",
        "blkif.h, BLKIF_OP_FLUSH_DISKCACHE: a flush whose data follows a write overtakes it",
    ),
    Fault(
        "block: image not locked",
        "drivers/block/image_lock.py",
        "        _take_locks(fd, path, readonly=readonly)\n",
        "",
        "tests/drivers/test_block_image.py::test_two_writers_are_refused_and_the_holder_is_named",
        "two writers destroy a file system without a word",
    ),
)

LIFE_FAULTS: Final = (
    Fault(
        "queue: unmasked before the work",
        "xenpy/runtime.py",
        "            ports = channels.pending()\n",
        "            ports = channels.pending()\n            channels.unmask(ports)\n",
        f"{RUNTIME}::test_the_port_is_unmasked_after_the_work",
        "XSA-332: each event of a busy peer is an interrupt",
    ),
    Fault(
        "queue: never unmasked",
        "xenpy/runtime.py",
        "            channels.unmask(ports)\n",
        "",
        f"{RUNTIME}::test_the_port_is_unmasked_after_the_work",
        "drivers/xen/evtchn.c: a port that fired stays masked; the first event is the last",
    ),
    Fault(
        "queue: storm of events not held off",
        "xenpy/runtime.py",
        "            if idle_wakes > SPURIOUS_ALLOWED and self._held_off(idle_wakes):\n"
        "                return\n",
        "",
        f"{RUNTIME}::test_a_storm_of_empty_events_is_held_off",
        "XSA-332: a guest that notifies for nothing takes a CPU",
    ),
    Fault(
        "queue: stop does not wait",
        "xenpy/runtime.py",
        "        await asyncio.shield(self._ended)\n",
        "",
        f"{RUNTIME}::test_a_stop_lasts_until_the_thread_has_let_go",
        "the frontend ends its grants while I/O goes into them",
    ),
    Fault(
        "life: closed before the disconnect",
        "xenpy/lifecycle.py",
        "            await self._disconnect(close=not online)\n"
        "            await self._switch(XenbusState.CLOSED)\n",
        "            await self._switch(XenbusState.CLOSED)\n"
        "            await self._disconnect(close=not online)\n",
        f"{LIFE}::test_closed_is_written_when_nothing_is_held_any_more",
        "io/xenbus.h, XenbusStateClosed: a promise that no page of the guest is mapped",
    ),
    Fault(
        "life: Closed before the image is closed",
        "xenpy/lifecycle.py",
        "        if close:\n",
        "        if False:\n",
        f"{LIFE}::test_what_is_served_is_closed_before_a_last_closed_is_written[0]",
        "the toolstack gives the image to the next guest as soon as it reads 6",
    ),
    Fault(
        "life: flapping not slowed down",
        "xenpy/lifecycle.py",
        "        if await self._held_back(step):\n",
        "        if False:\n",
        f"{LIFE}::test_a_frontend_that_flaps_is_slowed_down",
        "a guest that toggles its state takes the daemon and xenstored for itself",
    ),
    Fault(
        "life: restarted without a disconnect",
        "xenpy/lifecycle.py",
        "            await self._disconnect()\n            await self._prepare()\n",
        "            await self._prepare()\n",
        f"{LIFE}::test_a_device_is_connected_once_at_a_time",
        "XSA-350: two connections of one device",
    ),
    Fault(
        "life: owner of the frontend's directory not asked",
        NODES,
        "            if owner != context.domid:\n",
        "            if False:\n",
        f"{LIFE}::test_keys_in_a_directory_of_another_domain_are_not_believed",
        "XSA-175: keys that another guest can write",
    ),
    Fault(
        "life: rings of before connected",
        NODES,
        "                raise StartedOverError\n",
        "                pass\n",
        "tests/unit/test_framework.py"
        "::test_a_frontend_that_starts_over_while_it_is_being_connected",
        "the backend says Connected and serves a ring that nobody uses any more",
    ),
    Fault(
        "store: busy daemon taken for a dead one",
        "xenpy/store_connection.py",
        "        if not overtaken and until > self._loop.time():\n",
        "        if False:\n",
        "tests/unit/test_store_connection.py::test_a_slow_xenstored_is_none",
        "a thousand requests through /dev/xen/xenbus, one at a time, run into the time-out",
    ),
    Fault(
        "life: removed device written back",
        NODES,
        "        if state is None:\n            raise NodesGoneError\n",
        "",
        f"{LIFE}::test_a_directory_that_was_removed_is_not_brought_back",
        "a `state` after the toolstack's rm: a device that nobody made",
    ),
    Fault(
        "life: state written into a device made anew",
        NODES,
        "        if phase is not XenbusState.INITIALISING:\n            raise NodesRemadeError\n",
        "",
        f"{LIFE}::test_a_device_made_anew_while_the_old_one_connects_is_not_taken_for_it",
        "Connected, and the sectors of another image, for a device that nobody serves",
    ),
    Fault(
        "life: Connected for rings that the frontend no longer has",
        NODES,
        "            now = await tx.read_tree(self._front",
        "            now = await self._store.read_tree(self._front",
        f"{LIFE}::test_a_frontend_that_starts_over_while_connected_is_written_is_connected_anew",
        "the look and the write are one transaction: between two the frontend may start over",
    ),
    Fault(
        "life: held for ever after a write that was refused",
        "xenpy/lifecycle.py",
        "            # xenstored refuses what a life needs: a quota, a right.\n"
        "            await self._let_go()\n",
        "",
        f"{LIFE}::test_a_device_that_xenstored_refuses_to_serve_is_let_go[no quota]",
        "an image locked and a guest's pages mapped by a device that is given up",
    ),
    Fault(
        "life: a state with spaces",
        "xenpy/xenbus.py",
        '    if text is not None and len(text) == 1 and "0" <= text <= "8":\n',
        '    if text is not None and text.strip().isdigit() and "0" <= text.strip() <= "8":\n',
        "tests/unit/test_xenbus.py::test_nonsense_is_unknown[ 4]",
        "io/xenbus.h: a state is one digit; toolstack and backend must read the same",
    ),
    Fault(
        "life: second daemon on one kind",
        "xenpy/service.py",
        "            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        "tests/unit/test_claim_kind.py::test_a_second_daemon_is_refused_and_told_by_whom",
        "two backends on each ring",
    ),
    Fault(
        "life: log without a bound",
        "xenpy/devlog.py",
        "        if level > logging.DEBUG and self._bucket.take() > 0.0:\n",
        "        if False:\n",
        "tests/unit/test_devlog.py::test_a_flood_is_bounded_and_counted",
        "XSA-43: a guest fills the disk with messages about itself",
    ),
)

STORE_FAULTS: Final = (
    Fault(
        "store: a connection that broke at once is kept",
        "xenpy/xenstore.py",
        "            connection.check()\n",
        "",
        "tests/unit/test_store_connection.py"
        "::test_a_connection_that_breaks_as_soon_as_its_watches_are_armed_is_left",
        "every request fails and no event comes any more: the daemon is deaf for good",
    ),
    Fault(
        "store: conflict not tried again",
        "xenpy/store_transaction.py",
        "            if error.errno == errno.EAGAIN:\n                return False\n",
        "",
        f"{STORE}::test_a_conflict_runs_it_again[c]",
        "xenstore.txt, TRANSACTION_END: EAGAIN is everyday life",
    ),
    Fault(
        "store: conflicts without an end",
        "xenpy/store_transaction.py",
        "    for attempt in range(attempts):\n",
        "    for attempt in range(attempts + 50):\n",
        f"{STORE}::test_a_conflict_every_time_ends[c]",
        "xenstore.txt, TRANSACTION_END: a guest that changes its keys all the time keeps us trying",
    ),
    Fault(
        "store: watches not armed after a reconnect",
        "xenpy/xenstore.py",
        "            await self._arm_all(connection)\n",
        "            pass\n",
        f"{STORE}::test_a_cut_connection_fails_what_is_in_flight_and_mends_itself[c]",
        "xenstore.txt, WATCH: watches end with their connection; devices are never seen again",
    ),
    Fault(
        "store: any size of packet",
        "xenpy/store_wire.py",
        "                if size > (DIRECTORY_MAX if op == Op.DIRECTORY else PAYLOAD_MAX):\n",
        "                if False:\n",
        "tests/unit/test_store_wire.py"
        "::test_a_longer_payload_is_refused_before_a_byte_of_it_is_kept[2-2147483648]",
        "xs_wire.h, XENSTORE_PAYLOAD_MAX: 4 GiB are waited for",
    ),
    Fault(
        "store: changed paths without a bound",
        "xenpy/store_watch.py",
        "            if len(self._paths) >= MAX_PATHS and path not in self._paths:\n",
        "            if False:\n",
        "tests/unit/test_store_watch.py::test_more_paths_than_are_remembered_become_the_root",
        "XSA-349: a guest's keys fill the backend's memory",
    ),
    Fault(
        "store: long directory refused",
        "xenpy/store_nodes.py",
        "            if error.errno != errno.E2BIG:\n                raise\n",
        "            raise\n",
        f"{STORE}::test_a_directory_over_4_kib_is_listed_whole[c]",
        "xenstore.txt, DIRECTORY_PART: a guest with many devices has none",
    ),
    Fault(
        "store: parts of two generations joined",
        "xenpy/store_nodes.py",
        "            if generation not in (None, current):\n                return None\n",
        "",
        "tests/unit/test_store_parts.py::test_a_list_that_changes_meanwhile_is_read_again",
        "xenstore.txt, DIRECTORY_PART: names cut in the middle",
    ),
)

FAULTS: Final = (*RING_FAULTS, *GRANT_FAULTS, *BLOCK_FAULTS, *LIFE_FAULTS, *STORE_FAULTS)

INTRODUCTION: Final = """\
# Seeded faults

Written by `python -m tests.faults.table` from the data there; do not edit.

A test that cannot fail proves nothing. Each line is one fault that is put into a copy of
xenpy, alone, and the test that fails then and passes without it. `tests/faults/test_faults.py`
does this under `xenvm test --all`.

| fault | in | the test that notices | what it would do |
|---|---|---|---|
"""


def render() -> str:
    """The page."""
    lines = [
        f"| {fault.name} | `{fault.file}` | `{_shown(fault.killer)}` | {fault.why} |\n"
        for fault in FAULTS
    ]
    return f"{INTRODUCTION}{''.join(lines)}"


def _shown(killer: str) -> str:
    """Without the directory, and so that no table's bar or space is lost."""
    return killer.removeprefix("tests/").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render())
