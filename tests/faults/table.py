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
        hangs: seconds, at least, after which a killer that waits for ever counts as failed, for a
            lost wake-up; None: it must fail by itself.
        alone: two threads must run at the same time for it to show: not on a busy machine.
    """

    name: str
    file: str
    old: str
    new: str
    killer: str
    why: str
    hangs: float | None = None
    alone: bool = False


RING = "xenpy/include/xenpy/ring_core.h"
DIFFERENTIAL = "tests/abi/test_ring_differential.py"
SAME_PAGES = f"{DIFFERENTIAL}::test_the_same_schedule_leaves_the_same_pages[('large', 1)-0]"
LITMUS = "tests/abi/test_litmus.py::test_no_wake_up_is_lost_in_ten_million_rounds"
UNIT_RING = "tests/unit/test_ring.py"
PROTOCOL = "drivers/block/protocol.py"
UNIT_PROTOCOL = "tests/drivers/test_block_protocol.py"
SUITE = "tests/drivers/test_block_protocol_fake.py"
ENGINE = "tests/engine/test_engine.py"
COW = "drivers/block/filters/cow.py"
FILTERS = "tests/drivers/test_block_filters.py"
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
        "    count = queued < limit ? queued : (uint32_t)limit;\n",
        "    count = queued < limit ? queued : (uint32_t)limit;\n",
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
        "xenpy/include/xenpy/calls.h",
        "    return madvise(address, length, MADV_DONTFORK);\n",
        "    return madvise(address, length, MADV_DOFORK);\n",
        f"{HANDLES}::test_a_view_in_a_child_of_fork_reaches_nothing",
        "the guest's pages stay mapped in a child after we have let go",
    ),
    Fault(
        "grants: status of a copy ignored",
        "drivers/block/datapath.py",
        "            if status != 0:\n",
        "            if False:\n",
        f"{SUITE}::test_g1_a_bad_reference_fails_its_request_only[batch-0-0-copied]",
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
        "            if not self._make_room(len(together)):\n                return\n",
        "",
        f"{SUITE}::test_g4_the_cache_is_bounded_and_evicts_the_oldest[batch]",
        "blkback's max_persistent_grants: a guest exhausts maptrack for all",
    ),
)

BLOCK_FAULTS: Final = (
    Fault(
        "block: slot looked at a second time",
        "drivers/block/queue.py",
        "        accepted = [item for item in parsed if isinstance(item, Request)]\n",
        """\
        state, size, seg = self._ring._state, abi.layout.slot_size, abi.segment
        for number, item in enumerate(parsed):
            if isinstance(item, Request):
                index = (state.consumed - len(slots) + number) % self._ring.entries
                with self._ring._memory.view(64 + index * size, size) as view:
                    raw = bytes(view)[abi.header.size :][: seg.size * len(item.segments)]
                parsed[number] = item._replace(segments=[*seg.iter_unpack(raw)])
        accepted = [item for item in parsed if isinstance(item, Request)]
""",
        f"{SUITE}::test_r3_slots_that_turn_evil_once_they_are_checked[copied-batch]",
        "XSA-155: checked in one version, carried out in another",
    ),
    Fault(
        "block: final check left out",
        "drivers/block/queue.py",
        "        if not slots and self._ring.final_check():\n"
        "            slots = self._ring.take(BATCH_LIMIT)\n",
        "",
        f"{SUITE}::test_r1_valid_traffic_goes_through_the_wrap[batch-2147483608]",
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
        "    if sectors and sector + sectors > disk.sectors:\n",
        "    if sectors and (sector + sectors) % 2**64 > disk.sectors:\n",
        f"{UNIT_PROTOCOL}::test_beyond_the_end[18446744073709551608-0-x86_64-abi]",
        "blkif.h, sector_number: 2^64 - 8 and 8 sectors are within every disk",
    ),
    Fault(
        "block: no segments accepted",
        PROTOCOL,
        " or (nr_segments == 0 and operation not in MAY_BE_EMPTY):",
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
        "        if first > last or last > LAST_SECTOR_OF_PAGE:\n",
        "        if last > LAST_SECTOR_OF_PAGE:\n",
        f"{UNIT_PROTOCOL}::test_sectors_that_are_not_in_a_page[0-7-6-x86_64-abi]",
        "blkif.h, first_sect: a negative length",
    ),
    Fault(
        "block: last sector behind the page",
        PROTOCOL,
        "        if first > last or last > LAST_SECTOR_OF_PAGE:\n",
        "        if first > last:\n",
        f"{UNIT_PROTOCOL}::test_sectors_that_are_not_in_a_page[0-0-8-x86_64-abi]",
        "blkif.h, last_sect: bytes of the page behind, which may be another's",
    ),
    Fault(
        "block: read-only disk written",
        PROTOCOL,
        "    elif disk.readonly and sectors and operation != OP_READ:\n",
        "    elif disk.readonly and sectors and operation == OP_FLUSH_DISKCACHE:\n",
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
        "xenpy/peer_keys.py",
        "    plain = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS\n",
        '    text = str(int(text, 16)) if text.startswith("0x") else text.strip()\n'
        "    plain = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS\n",
        f"{UNIT_PROTOCOL}::test_values_that_are_no_plain_numbers[0x10-ring-ref]",
        "what one parser takes and another refuses: hostile text in ring-ref",
    ),
    Fault(
        "block: spaces around a number",
        "xenpy/peer_keys.py",
        "    plain = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS\n",
        "    plain = text.isascii() and text.strip().isdigit() and len(text) <= MAX_DIGITS\n",
        f"{UNIT_PROTOCOL}::test_values_that_are_no_plain_numbers[ 5-ring-ref]",
        "Python's int() takes what no frontend means",
    ),
    Fault(
        "block: one page twice in a ring",
        "drivers/block/frontend_keys.py",
        "    if len(set(refs)) != len(refs):\n",
        "    if False:\n",
        f"{SUITE}::test_r7_the_same_page_twice_in_a_ring[batch]",
        "two slots in one place: a request changes under its copy",
    ),
    Fault(
        "block: failed flush forgotten",
        "drivers/block/store.py",
        "                self._lost = error.with_traceback(None)\n",
        "                pass\n",
        "tests/drivers/test_block_store.py::test_a_failed_flush_is_never_forgotten",
        "fsync(2) reports a lost write once; the next flush would claim that it is safe",
    ),
    Fault(
        "block: queues left open when one cannot be",
        "drivers/block/back.py",
        "        except Exception:\n            await self.disconnect()\n            raise\n",
        "        except ZeroDivisionError:\n            raise\n",
        f"{SUITE}::test_r7_one_queue_of_several_that_cannot_be_opened[batch-ring-ref-2]",
        "backend.Device.connect: nothing of the guest's is held after an error",
    ),
    Fault(
        "block: one page in two rings",
        "drivers/block/frontend_keys.py",
        "    refs = [ref for ring in rings for ref in ring]\n",
        "    refs = list(rings[0])\n",
        f"{UNIT_PROTOCOL}::test_keys_of_queues_that_make_no_sense[keys0-ring-ref is given twice]",
        "two threads answer in the same slots",
    ),
    Fault(
        "block: flush before the writes",
        "drivers/block/datapath.py",
        "            if neighbours and (alone or not _follows("
        "neighbours[-1].request, job.request)):\n"
        "                self._transfer(neighbours)\n"
        "                neighbours = []\n"
        "            if alone:\n"
        "                self._act(job)\n",
        "            if alone:\n"
        "                self._act(job)\n"
        "            if neighbours and (alone or not _follows("
        "neighbours[-1].request, job.request)):\n"
        "                self._transfer(neighbours)\n"
        "                neighbours = []\n",
        f"{SUITE}::test_a_flush_follows_the_writes_of_its_batch[batch]",
        "blkif.h, BLKIF_OP_FLUSH_DISKCACHE: what the guest wrote before is lost with the power",
    ),
    Fault(
        "block: flush as a neighbour of a write",
        "drivers/block/datapath.py",
        "(alone or not _follows(neighbours[-1].request, job.request))",
        "not _follows(neighbours[-1].request, job.request)",
        f"{SUITE}::test_a_flush_follows_the_writes_of_its_batch[batch]",
        "blkif.h, BLKIF_OP_FLUSH_DISKCACHE: a flush whose data follows a write overtakes it",
    ),
    Fault(
        "block: indirect segments looked at a second time",
        "drivers/block/queue.py",
        "        return self._keys.abi.resolve(item, table, disk)\n",
        """\
        result = self._keys.abi.resolve(item, table, disk)
        (again,) = self._datapath.copy_tables([item])
        if isinstance(result, Request) and again is not None:
            segments = self._keys.abi._segments(again)[: item.count]
            object.__setattr__(result, "segments", segments)
        return result
""",
        f"{SUITE}::test_b2_segments_that_turn_evil_once_they_are_copied[copied-batch]",
        "XSA-155: checked in one version, carried out in another",
    ),
    Fault(
        "block: one indirect segment too many accepted",
        PROTOCOL,
        "        if not 0 < count <= MAX_INDIRECT_SEGMENTS:\n",
        "        if not 0 < count <= MAX_INDIRECT_SEGMENTS + 1:\n",
        f"{UNIT_PROTOCOL}::test_indirect_counts[257-x86_64-abi]",
        "blkif.h, feature-max-indirect-segments: more than was offered, and than was made room for",
    ),
    Fault(
        "block: a callback given memory of somebody else's",
        "drivers/block/engine/batch.c",
        "    return !store->callbacks ||\n",
        "    return store->callbacks ||\n",
        f"{ENGINE}::test_a_random_history_gives_what_a_model_says[1-copied-callbacks]",
        "one buffer over two requests that are not side by side in the pool",
    ),
    Fault(
        "block: a callback's data left in the pool",
        "drivers/block/engine/copy.c",
        "                memcpy(page + offset, local, length);\n",
        "                memcpy(local, page + offset, length);\n",
        f"{ENGINE}::test_a_random_history_gives_what_a_model_says[1-persistent-callbacks]",
        "a page that is mapped keeps what it held: stale data, read as the disk's",
    ),
    Fault(
        "block: what a callback leaves undone is done",
        "drivers/block/engine/store.c",
        "            .write = transfers[i].write, .result = -EIO,\n",
        "            .write = transfers[i].write, .result = 0,\n",
        f"{ENGINE}::test_a_random_history_gives_what_a_model_says[1-copied-callbacks]",
        "an exception in the middle of a batch acknowledges the rest of it",
    ),
    Fault(
        "block: an error of a callback forgotten",
        "drivers/block/callbacks.py",
        "                words[at] = -errno_of(error, self._context.log, what)\n",
        "                words[at] = 0\n",
        f"{SUITE}::test_b3_a_write_that_fails_is_not_acknowledged[28-copied-callback]",
        "a write that failed is acknowledged",
    ),
    Fault(
        "block: a batch of any size at once",
        "drivers/block/datapath.py",
        "        if pages > POOL_PAGES:\n",
        "        if False:\n",
        f"{SUITE}::test_a_batch_of_more_than_may_be_under_way_is_served_in_pieces[copied-batch]",
        "a guest chooses how much memory of this domain it uses, or the copy leaves the pool",
    ),
    Fault(
        "block: barrier acknowledged before its data is durable",
        "drivers/block/datapath.py",
        "            if operation == OP_WRITE_BARRIER and neighbours:\n",
        "            if False:\n",
        f"{SUITE}::test_b4_a_barrier_stands_between_what_is_before_and_after_it[batch]",
        "blkif.h, BLKIF_OP_WRITE_BARRIER: what follows may be on the disk and the barrier not",
    ),
    Fault(
        "block: secure discard carried out as any other",
        PROTOCOL,
        "        if flag & DISCARD_SECURE and not disk.secure_discard:\n",
        "        if False:\n",
        f"{UNIT_PROTOCOL}::test_a_discard_that_was_not_offered[x86_64-abi]",
        "blkif.h, BLKIF_DISCARD_SECURE: the guest believes its data destroyed",
    ),
    Fault(
        "block: part of a sector accepted",
        PROTOCOL,
        "    elif sectors and (sector | sectors) & ((disk.sector_size >> SECTOR_SHIFT) - 1):\n",
        "    elif False:\n",
        f"{SUITE}::test_a_request_is_of_whole_sectors[batch]",
        "blkif.h, sector-size: a store of 4096-byte sectors fails, or writes what it was not given",
    ),
    Fault(
        "engine: part of a sector accepted",
        "drivers/block/engine/request.h",
        "        ((request->sector | request->sectors) & limits->fraction) ||\n",
        "",
        f"{SUITE}::test_a_request_is_of_whole_sectors[native]",
        "as above, in C",
    ),
    Fault(
        "block: the unit of sectors guessed",
        "drivers/block/sector_unit.py",
        '    if flag(frontend, "feature-large-sector-size"):\n',
        "    if False:\n",
        f"{SUITE}::test_a_frontend_whose_unit_is_not_known_is_refused[batch]",
        "blkif.h until Xen 4.20: a frontend that counts otherwise writes to wrong places",
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

DISK_FAULTS: Final = (
    Fault(
        "disk: two flushes at once",
        "drivers/block/store.py",
        "        with self._lock:\n            if self._lost is not None:\n",
        "        if True:\n            if self._lost is not None:\n",
        "tests/drivers/test_block_store.py::test_of_two_who_flush_both_hear_of_a_lost_write",
        "fsync(2) tells one of two queues of a lost write; the other would acknowledge it",
    ),
    Fault(
        "disk: a guest's code without leave",
        "drivers/block/image.py",
        "        if not settings.python:\n"
        '            raise DeviceError(f"a python: target {NOT_ALLOWED}")\n',
        "",
        "tests/drivers/test_block_image.py::test_a_python_target_is_allowed_by_the_operator_alone",
        "whoever may name an image could run code with the daemon's rights",
    ),
    Fault(
        "disk: a filter's code without leave",
        "drivers/block/filters/python.py",
        "        if not place.python:\n",
        "        if False:\n",
        "tests/drivers/test_block_filters.py::test_a_filter_of_the_operator_s_own",
        "whoever may name a filter could run code with the daemon's rights",
    ),
    Fault(
        "disk: a flush that stops at the proxy",
        "drivers/block/stores/front.py",
        "        if disk.flush or disk.barrier:\n",
        "        if False:\n",
        "tests/drivers/test_block_store_contract.py::test_a_failed_flush_is_final[xen]",
        "the guest is told that its data is safe, and the disk behind was never asked",
    ),
    Fault(
        "disk: a flush that vouches for another connection",
        "drivers/block/front.py",
        "        if written not in (None, link):\n",
        "        if False:\n",
        "tests/drivers/test_proxy_fake.py"
        "::test_a_flush_does_not_vouch_for_what_the_backend_had_before_it_started_over",
        "a backend that died with its cache, and a guest that is told that its data is safe",
    ),
    Fault(
        "disk: a guest's page in the proxy's other loop",
        "drivers/block/stores/front.py",
        'self._device.pwrite(b"".join(buffers), offset)',
        "self._device.pwritev(buffers, offset)",
        "tests/drivers/test_proxy_fake.py::test_an_error_keeps_none_of_the_guest_s_pages",
        "what an error keeps alive there keeps the page mapped after the device has closed",
    ),
    Fault(
        "disk: memory taken over by another daemon",
        "drivers/block/back.py",
        "            if VOLATILE in keys:\n",
        "            if VOLATILE in keys and False:\n",
        "tests/drivers/test_block_targets_fake.py"
        "::test_what_ends_with_the_daemon_is_taken_over_by_no_other[memory:1M--True]",
        "the guest goes on with a mounted file system, of which nothing but zeros is left",
    ),
    Fault(
        "disk: a beginner's store in two threads",
        "drivers/block/stores/guarded.py",
        "nullcontext() if inner.parallel else threading.Lock()",
        "nullcontext()",
        "tests/drivers/test_block_python_store.py"
        "::test_a_store_is_asked_one_thing_at_a_time_unless_it_says_otherwise[False]",
        "two queues of a disk in code that was never meant for it",
    ),
    Fault(
        "cow: bits before their clusters",
        COW,
        "        os.fdatasync(self._fd)\n        if blocks:\n",
        "        if blocks:\n",
        f"{FILTERS}::test_bits_follow_their_clusters_to_stable_storage",
        "after a power failure a bit without its cluster turns good sectors into zeros",
    ),
    Fault(
        "cow: bits of clusters that were not synced",
        COW,
        "self._overlay.write(memoryview(block), BLOCK + number * BLOCK)",
        "self._overlay.write(memoryview(self._bitmap)[: len(block)], BLOCK + number * BLOCK)",
        f"{FILTERS}::test_a_bit_that_came_during_the_sync_waits_for_the_next",
        "the same, for a write that came while the flush was on its way",
    ),
    Fault(
        "cow: two queues grow one cluster",
        COW,
        "        with self._growing:\n            # Half",
        "        if True:\n            # Half",
        f"{FILTERS}::test_two_queues_in_one_cluster_keep_both_writes[512]",
        "the old sectors that one brings along undo what the other has written beside them",
    ),
)

LIFE_FAULTS: Final = (
    Fault(
        "life: a state of the toolstack's written over",
        "xenpy/device_nodes.py",
        '            if parse_state(await tx.get(f"{self._back}/state")) is phase:\n',
        "            if True:\n",
        "tests/unit/test_lifecycle.py::test_a_state_of_the_toolstack_s_is_not_overwritten",
        "it asks for a close while the backend tells of a new size, and waits in vain",
    ),
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
        "            if idle_wakes > SPURIOUS_ALLOWED and stop.wait(hold_off(idle_wakes)):\n"
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
        "life: each state that a frontend writes is looked at",
        "xenpy/lifecycle.py",
        "                            await asyncio.sleep(delay)\n",
        "                            pass\n",
        f"{LIFE}::test_a_frontend_that_writes_its_state_again_and_again_is_not_looked_at_each_time",
        "four requests to xenstored for each, which all devices share",
    ),
    Fault(
        "life: drained, and on in a device made anew",
        "xenpy/lifecycle.py",
        "        if self._replaced:\n",
        "        if False:\n",
        f"{LIFE}::test_a_device_made_anew_while_the_old_one_drains_is_not_the_old_one_s_any_more"
        "[False]",
        "Closed under a connected guest, and two backends of its next ring",
    ),
    Fault(
        "life: parked although it has failed",
        "xenpy/lifecycle.py",
        "        failure, self._failure = self._failure, None\n        return failure\n",
        "        self._failure = None\n        return None\n",
        f"{LIFE}::test_a_device_that_has_failed_is_not_parked[True]",
        "the next daemon carries out again what nobody knows to be outstanding",
    ),
    Fault(
        "block: a lost write handed over",
        "drivers/block/back.py",
        "        if store.flush_failed or memory.has_lost:\n",
        "        if False:\n",
        f"{SUITE}::test_a_failed_flush_is_never_forgotten[batch]",
        "the kernel has told of it, and the next daemon's flush succeeds",
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

OWN = "tests/drivers/test_own_fake.py"
OWN_GUESTS = "tests/drivers/test_own_guests_fake.py"
OWN_FAULTS: Final = (
    Fault(
        "own: final check left out",
        "xenpy/ring_server.py",
        "        if not slots and self._ring.final_check():\n",
        "        if not slots and False:\n",
        f"{OWN}::test_pages_are_read_mapped_and_written",
        "ring.h, RING_FINAL_CHECK_FOR_REQUESTS: nobody asks for the next event",
        hangs=30,
    ),
    Fault(
        "own: any number of requests worked on",
        "xenpy/ring_server.py",
        "            room = 0 if self._over else self._limit - len(self._tasks)\n",
        "            room = 0 if self._over else self._limit\n",
        f"{OWN}::test_more_requests_than_fit",
        "a guest chooses how much of this domain works for it",
    ),
    Fault(
        "own: a stop does not wait for the work",
        "xenpy/ring_server.py",
        "            await asyncio.wait(self._tasks, timeout=STOP_BOUND)\n",
        "            await asyncio.sleep(0)\n",
        "tests/drivers/test_own_hostile.py::test_both_abis_and_a_stop_under_load[X86_64]",
        "what was taken is not carried out, although nothing hindered it",
    ),
    Fault(
        "own: a page stays mapped",
        "xenpy/ring_backend.py",
        "        finally:\n            self._unmap(page)\n",
        "        finally:\n            self.context.log.debug('%r', page)\n",
        "tests/drivers/test_own_hostile.py::test_nothing_but_the_ring_stays_mapped",
        "each request costs a mapping, until there are no more",
    ),
    Fault(
        "own: slices may keep any number of pages",
        "xenpy/ring_backend.py",
        "        if len(self._kept) >= KEPT:\n",
        "        if False:\n",
        "tests/drivers/test_own_hostile.py::test_slices_that_handlers_keep_are_bounded",
        "a guest fills the grant table of this domain through somebody's careless handler",
    ),
    Fault(
        "own: a page given back under a request",
        "xenpy/granted_page.py",
        "        self._waiting.append((set(in_flight), pages))\n",
        "        self._waiting.append((set(), pages))\n",
        "tests/drivers/test_own_hostile.py"
        "::test_a_page_stays_granted_while_a_forgotten_request_may_name_it",
        "a late answer lands in a page that is somebody else's by then",
    ),
    Fault(
        "own: an errno lost",
        "xenpy/ring_backend.py",
        "        return self.protocol.failure(request, found)\n",
        "        return self.protocol.failure(request, errno.EIO)\n",
        f"{OWN}::test_a_handler_that_fails_costs_its_request[4-28]",
        "the guest is told of another error than there was",
    ),
    Fault(
        "own: a frontend has as many rings as it likes",
        "xenpy/ring_keys.py",
        "    if not 1 <= count <= max_rings:\n",
        "    if not 1 <= count:\n",
        "tests/unit/test_ring_keys.py::test_r6_more_rings_than_were_offered",
        "a guest chooses how many rings and ports of this domain it has",
    ),
    Fault(
        "own: settings that are refused stay",
        "xenpy/attach.py",
        "        await store.transact(take_back)\n",
        "",
        f"{OWN}::test_settings_and_others_later",
        "the next daemon starts with what this one has refused",
    ),
    Fault(
        "own: the ABI of the frontend not asked",
        "xenpy/ring_backend.py",
        "        abi = _abi_of(frontend)\n",
        "        abi = CAbi.native()\n",
        "tests/drivers/test_own_hostile.py::test_both_abis_and_a_stop_under_load[X86_32]",
        "io/protocols.h: a 32-bit guest's slots are read as others",
        hangs=60,
    ),
    Fault(
        "own: an answer to nothing is passed over",
        "xenpy/ring_asker.py",
        '            raise PeerError(f"an answer to request {ident:#x}, which is not in flight")\n',
        "            return\n",
        f"{OWN}::test_f1_an_answer_to_nobody_s_question",
        "a backend that has lost count serves on, and the caller waits for ever",
        hangs=30,
    ),
    Fault(
        "own: a driver domain insists on being told who lives",
        "xenpy/service.py",
        "            except PermissionError:\n",
        "            except NotADirectoryError:\n",
        f"{OWN_GUESTS}::test_the_two_files_as_they_are[another guest]",
        "XSA-115: a warning at each death of any domain, for ever",
    ),
    Fault(
        "own: half a device cannot be taken away",
        "xenpy/cli/detach.py",
        "(await store.exists(ends.backend) or await store.exists(ends.frontend))",
        "await store.exists(ends.backend)",
        f"{OWN_GUESTS}::test_a_backend_s_guest_dies",
        "after the death of a backend's domain its number is taken for good",
    ),
    Fault(
        "own: the end of a record is no padding",
        "xenpy/protocol_page.py",
        "    for start, length in [*starts, (record.size, 0)]:\n",
        "    for start, length in starts:\n",
        "tests/unit/test_protocol_page.py::test_json_has_all_of_it",
        "the other half is written from it, and leaves there what was there (XSA-216)",
    ),
)

STREAM = "tests/drivers/test_stream_fake.py"
STREAM_HOSTILE = "tests/drivers/test_stream_hostile.py"
STREAM_FAULTS: Final = (
    Fault(
        "stream: what is in the ring at the end is lost",
        "xenpy/byte_stream.py",
        "                self._rest = self._taken.read()\n",
        "                pass\n",
        f"{STREAM}::test_what_is_in_the_ring_at_the_end_is_read",
        "whoever writes and closes has said it to nobody",
    ),
    Fault(
        "stream: room is not announced",
        "xenpy/byte_stream.py",
        "                self.received += len(content)\n                self._notify()\n",
        "                self.received += len(content)\n",
        f"{STREAM_HOSTILE}::test_the_other_end_is_told_of_each_change",
        "a peer that sleeps while the ring is full sleeps on",
    ),
    Fault(
        "stream: any ring_order",
        "xenpy/flex_ring.py",
        "    if not 1 <= order <= max_order:\n",
        "    if False:\n",
        f"{STREAM_HOSTILE}::test_a_page_of_anything",
        "the frontend says how many of its numbers are taken for grants, beyond its page",
    ),
    Fault(
        "stream: a record of any length",
        "xenpy/byte_stream.py",
        "                if length > limit:\n",
        "                if False:\n",
        f"{STREAM_HOSTILE}::test_a_record_that_is_too_long_or_cut_short",
        "the peer says how much memory this end collects",
    ),
)

CONSOLE = "tests/drivers/test_console_fake.py"
PRIMARY = "tests/drivers/test_console_primary.py"
OUTLETS = "tests/drivers/test_console_outlets.py"
CONSOLE_FAULTS: Final = (
    Fault(
        "console: what was printed before the end is left",
        "drivers/console/link.py",
        "        if not self._over:\n            self._service()\n",
        "",
        f"{PRIMARY}::test_what_is_in_the_ring_at_the_end_is_read",
        "a guest's last words, the ones that say why, are lost",
    ),
    Fault(
        "console: a taker begins with an empty ring",
        "drivers/console/protocol.py",
        "size=OUT_SIZE, cons=OUT_CONS, prod=OUT_PROD)",
        "size=OUT_SIZE, cons=OUT_PROD, prod=OUT_PROD)",
        f"{PRIMARY}::test_taken_and_handed_back_and_no_byte_is_lost",
        "what the server before has not read is skipped",
    ),
    Fault(
        "console: room is not announced",
        "drivers/console/link.py",
        "                self._ports.notify(self._port)\n                self._hub",
        "                self._hub",
        f"{CONSOLE}::test_a_pty_both_ways",
        "a frontend that sleeps while the ring is full sleeps on",
        hangs=40,
    ),
    Fault(
        "console: a backlog without a bound",
        "drivers/console/backlog.py",
        "        if over > 0:\n",
        "        if False:\n",
        f"{OUTLETS}::test_a_backlog_is_the_newest_bytes",
        "a guest that prints fills this domain's memory through a terminal that nobody reads",
    ),
    Fault(
        "console: whoever types is never paused",
        "drivers/console/hub.py",
        "        if len(self._waiting) >= TYPED_LIMIT and not self._paused:\n",
        "        if False:\n",
        f"{CONSOLE}::test_a_guest_that_does_not_read_holds_up_who_types",
        "what is typed to a guest that does not read piles up here",
    ),
    Fault(
        "console: a log that is not put aside",
        "drivers/console/log_outlet.py",
        "                if self._length >= self._size:\n",
        "                if False:\n",
        f"{OUTLETS}::test_a_log_is_the_newest_files",
        "a guest fills the disk",
        hangs=30,
    ),
    Fault(
        "console: the guest may write its terminal's name",
        "xenpy/device_nodes.py",
        "                await tx.set_perms(path, perms)\n",
        "",
        f"{CONSOLE}::test_where_xl_console_looks_no_guest_can_write[none]",
        "XSA-57: `xl console` opens whatever file of domain 0 the guest names",
    ),
    Fault(
        "console: handed back with our terminal's name",
        "drivers/console/primary_nodes.py",
        '("type", THEIRS), ("tty", tty), ',
        '("type", THEIRS), ',
        f"{PRIMARY}::test_without_xenconsoled",
        "`xl console` looks for a terminal that has gone",
    ),
    Fault(
        "console: handed back by somebody else",
        "drivers/console/primary_nodes.py",
        " or owner not in (None, found[OWNER])",
        "",
        f"{PRIMARY}::test_two_takers",
        "the first taker goes on, and xenconsoled has its keys",
    ),
    Fault(
        "console: xenconsoled's pty goes on",
        "drivers/console/their_tty.py",
        "            termios.tcflow(fd, termios.TCOOFF)\n",
        "",
        f"{PRIMARY}::test_a_pty_of_xenconsoled_s_stands_still_meanwhile",
        "a key typed there kills xenconsoled, which notifies through a handle that is NULL",
    ),
    Fault(
        "console: a taker that is cancelled keeps it",
        "drivers/console/primary.py",
        "        except BaseException:\n            await self._let_go()\n",
        "        except OSError:\n            await self._let_go()\n",
        f"{PRIMARY}::test_whoever_is_cancelled_hands_it_back[100]",
        "nobody serves the guest, whose kernel spins once the ring is full",
    ),
    Fault(
        "console: a dead guest's nodes are written anew",
        "drivers/console/primary_nodes.py",
        "    nodes = await Nodes.read(tx, domid)\n"
        "    if nodes.port != port:\n        return False\n",
        "",
        f"{PRIMARY}::test_a_guest_that_dies_while_its_console_is_taken",
        "the next domain of that number finds keys of another",
    ),
)

FRONT_QUEUE = "drivers/block/front_queue.py"
FRONT = "tests/drivers/test_block_front_fake.py"
FRONT_NODES = "xenpy/frontend_nodes.py"
FRONT_LIFE = "tests/unit/test_frontend_life.py"

FRONT_FAULTS: Final = (
    Fault(
        "front: a cancelled read still gets its bytes",
        FRONT_QUEUE,
        "        if not answer.done():\n            if status == RSP_OKAY:\n"
        "                if flight.into is not None:\n"
        "                    self.pool.drain(flight.pages, flight.into)\n",
        "        if status == RSP_OKAY and flight.into is not None:\n"
        "            self.pool.drain(flight.pages, flight.into)\n"
        "        if not answer.done():\n            if status == RSP_OKAY:\n",
        f"{FRONT}::test_a_cancelled_read_leaves_its_buffer_and_keeps_its_pages",
        "a late answer changes a buffer that is the caller's again",
    ),
    Fault(
        "front: an answer to nothing is passed over",
        FRONT_QUEUE,
        '            raise PeerError(f"an answer to request {ident:#x}, which is not in flight")\n',
        "            return\n",
        f"{FRONT}::test_f1_an_answer_that_comes_twice",
        "blkif.h, id: a backend that has lost count serves on, over pages that are in use again",
        hangs=30,
    ),
    Fault(
        "front: an answer may name any operation",
        FRONT_QUEUE,
        "        if operation not in flight.answered_as:\n",
        "        if operation < 0:\n",
        f"{FRONT}::test_f1_an_answer_that_makes_no_sense[answered as operation 1-answer2]",
        "blkif.h, operation is copied from the request: a write's answer passes for a read's",
        hangs=30,
    ),
    Fault(
        "front: any status but an error is success",
        FRONT_QUEUE,
        "        if status != RSP_OKAY and status not in ERRORS:\n",
        "        status = status if status in ERRORS else RSP_OKAY\n        if status == 1:\n",
        f"{FRONT}::test_f1_an_answer_that_makes_no_sense[status 1-answer5]",
        "blkif.h, BLKIF_RSP_*: bytes that nobody has read are handed out",
        hangs=30,
    ),
    Fault(
        "front: final check left out",
        FRONT_QUEUE,
        "                if not self._ring.final_check():\n                    break\n",
        "                break\n",
        f"{FRONT}::test_flush_barrier_and_discard_are_asked_for",
        "ring.h, RING_FINAL_CHECK_FOR_RESPONSES: nobody asks for the next event",
        hangs=30,
    ),
    Fault(
        "front: an event storm is heard out",
        "xenpy/ports.py",
        "        if bound.idle_wakes <= SPURIOUS_ALLOWED:\n",
        "        if bound.idle_wakes >= 0:\n",
        "tests/unit/test_ports.py::test_a_storm_is_heard_a_few_times_a_second",
        "XSA-391: a backend that notifies without end has the frontend's CPU",
    ),
    Fault(
        "front: another device's backend accepted",
        FRONT_NODES,
        "        if back != [path, str(domid)]:\n",
        "        if back == []:\n",
        f"{FRONT}::test_f8_halves_that_do_not_belong_together[back-frontend-id-7]",
        "xenbus.h: pages are granted to a domain that serves somebody else",
        hangs=45,
    ),
    Fault(
        "front: whose the backend's directory is, not asked",
        FRONT_NODES,
        "        if owner != backend.backend_domid:\n",
        "        if owner < 0:\n",
        f"{FRONT_LIFE}::test_a_backend_that_another_domain_could_write_is_not_trusted",
        "XSA-175's rule: keys that another domain can write say nothing",
        hangs=30,
    ),
    Fault(
        "front: a moved backend goes unnoticed",
        FRONT_NODES,
        "        if backend != self.ends.backend:\n",
        "        if backend == ():\n",
        f"{FRONT}::test_f8_another_backend_under_way[backend-/local/domain/0/backend/vbd/5/51712]",
        "pages that are granted to one domain are offered to another",
        hangs=30,
    ),
    Fault(
        "front: keys of the connection before are left",
        FRONT_NODES,
        "                    if stale.fullmatch(key):\n",
        "                    if not key:\n",
        f"{FRONT}::test_a_disk_is_opened_again_and_again",
        "blkif.h, ring-ref or ring-refK: the backend maps a ring of before",
        hangs=60,
    ),
    Fault(
        "front: closed with requests in flight",
        "xenpy/frontend_life.py",
        "                await asyncio.wait_for(self._device.drain(), CLOSE_BOUND)\n",
        "                await asyncio.sleep(0)\n",
        f"{FRONT}::test_a_backend_that_closes_gets_what_is_in_flight_answered_first",
        "`xl block-detach` of a busy disk: a write that was carried out is reported as lost",
        hangs=30,
    ),
    Fault(
        "front: a qdisk's large sectors guessed",
        "drivers/block/backend_keys.py",
        "        if size != SECTOR_SIZE and kind == OTHER_READING:\n",
        "        if size == 0:\n",
        "tests/drivers/test_block_front_protocol.py::test_a_qdisk_of_large_sectors_is_refused",
        "blkif.h before and since Xen 4.20: a write lands at an eighth of its place",
    ),
)

VCHAN = "tests/drivers/test_vchan_fake.py"
VCHAN_PAGE = "drivers/vchan/protocol.py"
VCHAN_LINK = "drivers/vchan/link.py"
VCHAN_NODES = "drivers/vchan/nodes.py"
UNIT_VCHAN = "tests/drivers/test_vchan_protocol.py"
VCHAN_THREADS = "tests/drivers/test_vchan_threads_fake.py"
DUPLEX = "xenpy/include/xenpy/duplex.h"
UNIT_DUPLEX = "tests/engine/test_duplex.py"

VCHAN_FAULTS: Final = (
    Fault(
        "vchan: an order one too large",
        VCHAN_PAGE,
        "            if not MIN_ORDER <= ring.order <= MAX_ORDER:\n",
        "            if not MIN_ORDER <= ring.order <= MAX_ORDER + 1:\n",
        f"{VCHAN}::test_orders_out_of_range[21-12]",
        "libxenvchan's init.c, MAX_RING_SHIFT: a server has us map what it likes",
    ),
    Fault(
        "vchan: both rings in one place",
        VCHAN_PAGE,
        "        if self.left == self.right and not self.left.pages:\n",
        "        if self.left == self.right and self.left.pages == -1:\n",
        f"{VCHAN}::test_orders_out_of_range[10-10]",
        "libxenvchan.h, left_order: only one of the two may be 10, or 11",
    ),
    Fault(
        "vchan: the list of grants reaches into a ring",
        VCHAN_PAGE,
        "            if not ring.pages and end > ring.offset:\n",
        "            if not ring.pages and end > ring.offset + ring.size:\n",
        f"{VCHAN}::test_orders_out_of_range[20-10]",
        "libxenvchan.h, grants: must not extend into the actual ring",
    ),
    Fault(
        "vchan: right's grants before left's",
        VCHAN_PAGE,
        "    return layout, refs[: layout.left.pages], refs[layout.left.pages :]\n",
        "    return layout, refs[layout.right.pages :], refs[: layout.right.pages]\n",
        f"{UNIT_VCHAN}::test_any_page_is_refused_or_its_parts_lie_apart",
        "libxenvchan.h, grants: ordering is left, right",
    ),
    Fault(
        "vchan: a live byte of any value",
        "drivers/vchan/channel.py",
        "        if value > (2 if self.side is SERVER else 1):\n",
        "        value = min(value, 1)\n        if value > (2 if self.side is SERVER else 1):\n",
        f"{VCHAN}::test_a_client_s_live_byte_is_junk[3]",
        "libxenvchan.h, cli_live: 0, 1 or 2",
    ),
    Fault(
        "vchan: the end before the last bytes",
        VCHAN_LINK,
        "        queued = self.queued\n",
        "        queued = 0 if self.gone else self.queued\n",
        f"{VCHAN}::test_a_client_that_dies",
        "libxenvchan.h, libxenvchan_close: the other side can still read what is pending",
    ),
    Fault(
        "vchan: a late notification takes the request with it",
        VCHAN_LINK,
        "            self.channel.want(bit)\n        return self.closed or condition()\n",
        "            pass\n        return self.closed or condition()\n",
        f"{VCHAN}::test_a_notification_that_comes_late[reading]",
        "libxenvchan's io.c asks again at each look: nobody hears of the next byte, and both wait",
    ),
    Fault(
        "vchan: a server that was torn away is a liar",
        "drivers/vchan/channel.py",
        "                if SharedByte(page, CLIENT.peer_live).get() == Live.GONE:\n",
        "                if self.closed:\n",
        f"{VCHAN}::test_keys_that_have_outlived_their_server[0-grants0]",
        "a client that comes again finds the keys of the channel before, until they are withdrawn",
    ),
    Fault(
        "vchan: every notification counts as work",
        VCHAN_LINK,
        "        return found + (self.gone != gone) + (len(self._pending) != pending)\n",
        "        return 1 + found + (self.gone != gone) + (len(self._pending) != pending)\n",
        f"{VCHAN}::test_a_storm_of_notifications",
        "XSA-391: a peer that notifies without end has all of our time",
    ),
    Fault(
        "vchan: a stream that has the loop for itself",
        VCHAN_LINK,
        "TURN: Final = 256 << 10\n",
        "TURN: Final = 1 << 60\n",
        f"{VCHAN}::test_others_have_their_turn_while_much_is_moved",
        "a peer that is always ready has all of our time",
    ),
    Fault(
        "vchan: keys for everybody to read",
        VCHAN_NODES,
        'f"n{own},r{client}"',
        'f"r{own},r{client}"',
        f"{VCHAN}::test_the_keys_are_the_client_s_to_read_and_go_with_the_server",
        "libxenvchan's init.c: permissions for domains not listed are none",
    ),
    Fault(
        "vchan: another server's keys removed",
        VCHAN_NODES,
        '            if await tx.get(f"{path}/{name}") != str(value):\n',
        '            if await tx.get(f"{path}/{name}") is None:\n',
        f"{VCHAN}::test_the_keys_are_the_client_s_to_read_and_go_with_the_server",
        "a server that ends late takes the one that has followed it out of XenStore",
    ),
    Fault(
        "vchan: all bits of a notify byte taken",
        "xenpy/shared_byte.py",
        "~bits & 0xFF",
        "0",
        f"{UNIT_RING}::test_bits_of_a_shared_byte",
        "libxenvchan.h, VCHAN_NOTIFY_READ: who waits for room is told of data only",
    ),
    Fault(
        "duplex: no second look after asking to be told",
        DUPLEX,
        "        if (count > 0 && tries++ < XENPY_DUPLEX_TRIES)\n",
        "        if (0 && tries++ < XENPY_DUPLEX_TRIES)\n",
        f"{UNIT_DUPLEX}::test_no_event_is_lost[one way, long-address]",
        "what was written before the flag was seen tells nobody: both sides sleep",
        hangs=30,
        alone=True,
    ),
    Fault(
        "duplex: the peer is not told",
        DUPLEX,
        "    if (xenpy_fetch_and8(duplex->asked, (uint8_t)~bit) & bit)\n",
        "    if (xenpy_fetch_and8(duplex->asked, (uint8_t)~bit) & bit & 4)\n",
        f"{UNIT_DUPLEX}::test_no_event_is_lost[both ways-address]",
        "libxenvchan.h, cli_notify: whoever set the bit sleeps",
        hangs=30,
    ),
    Fault(
        "duplex: an event kept from the other thread",
        DUPLEX,
        "        __atomic_store_n(&duplex->wake, 1, __ATOMIC_RELAXED);\n",
        "        __atomic_store_n(&duplex->wake, 0, __ATOMIC_RELAXED);\n",
        f"{UNIT_DUPLEX}::test_no_event_is_lost[both ways-address]",
        "two threads share a port: the one that reads its descriptor has the other's event",
        hangs=30,
    ),
    Fault(
        "duplex: each event begins the time anew",
        DUPLEX,
        "    else if (timeout < 0 &&\n",
        "    else if (1 ||\n",
        f"{VCHAN_THREADS}::test_a_peer_that_reads_bit_by_bit_does_not_make_the_time_longer[flush]",
        "a peer decides when a call with a time-out returns, and Ctrl-C with it",
    ),
    Fault(
        "duplex: a live byte of any value",
        DUPLEX,
        "    return live == XENPY_PEER_HERE ? 0 : -EPROTO;\n",
        "    return live == XENPY_PEER_HERE ? 0 : -ECONNRESET;\n",
        f"{VCHAN_THREADS}::test_a_client_that_keeps_no_rules[cli_live-7-recv]",
        "libxenvchan.h, cli_live: 0, 1 or 2",
    ),
)

TRACE = "xenpy/include/xenpy/trace.h"
PEEK = "xenpy/include/xenpy/peek.h"
UNIT_PEEK = "tests/unit/test_peek.py"
TAP = "tests/drivers/test_tap_fake.py"

TAP_FAULTS: Final = (
    Fault(
        "tap: no second look at the count",
        TRACE,
        "    if (first >= oldest)\n",
        "    if (first + 1 > 0)\n",
        f"{ENGINE}::test_no_record_is_ever_half_of_one",
        "a seqlock's reader: what was copied while the engine came around may be torn",
    ),
    Fault(
        "tap: an answer before its record",
        "drivers/block/engine/engine.c",
        "    if (engine->taken)\n        record(engine, count);\n",
        "    if (engine->taken && !count)\n        record(engine, count);\n",
        f"{ENGINE}::test_what_is_recorded_is_what_the_ring_carried[persistent-file]",
        "exact means that whoever knows that he is answered finds the record",
    ),
    Fault(
        "tap: recorded for good",
        "xenpy/control.py",
        "                held.callback(trace.want, -1)\n",
        "                held.callback(trace.want, 0)\n",
        f"{TAP}::test_it_costs_nothing_while_nobody_looks[native]",
        "a tap that is killed must leave nothing behind that costs",
    ),
    Fault(
        "tap: a slot that was written over",
        PEEK,
        "    if ((int32_t)passed <= 0)\n",
        "    if (passed != 0x80000000u)\n",
        f"{ENGINE}::test_who_looks_into_a_ring_sees_what_stands_there",
        "a response has a request's slot, and is none",
        alone=True,
    ),
    Fault(
        "tap: requests answered between two looks",
        PEEK,
        "    peek->lost_requests += asked - seen;\n",
        "",
        f"{UNIT_PEEK}::test_what_comes_and_goes_between_two_looks_is_lost",
        "a passive tap that says nothing of its loss lies",
    ),
    Fault(
        "tap: rings kept after the end",
        "xenpy/passive_tap.py",
        "            self._maps.close()\n",
        "            pass\n",
        f"{TAP}::test_a_passive_tap_gives_the_rings_back_when_an_end_closes",
        "a domain whose ring somebody has mapped stays a zombie after `xl destroy`",
    ),
)

FAULTS: Final = (
    *RING_FAULTS, *GRANT_FAULTS, *BLOCK_FAULTS, *DISK_FAULTS, *LIFE_FAULTS, *STORE_FAULTS,
    *OWN_FAULTS,
    *CONSOLE_FAULTS, *STREAM_FAULTS, *VCHAN_FAULTS, *FRONT_FAULTS,
    *TAP_FAULTS,
)  # fmt: skip

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
