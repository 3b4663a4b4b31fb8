# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op: whatever three guests do, in any order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.structs import (
    GnttabCopy,
    GnttabMapGrantRef,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
)
from pyhv.testing.granting import (
    ACCEPT,
    CONTAINS_PTE,
    GTF_READONLY,
    PAGES,
    PERMIT,
    READ_WRITE,
    SUB_PAGE,
    TRANSITIVE,
    Trio,
    entry,
    op,
    set_version,
)

REFS = st.sampled_from([3, 8, 8, 9, 9, 10, 255, 256])
FLAGS = (
    PERMIT,
    PERMIT,
    PERMIT,
    PERMIT | GTF_READONLY,
    PERMIT | SUB_PAGE,
    ACCEPT,
    ACCEPT,
    TRANSITIVE,
    0,
    0xFFE7,
)
WHAT = (
    "entry", "entry", "entry", "version", "map", "map", "map", "unmap", "replace", "copy", "transfer", "swap",
    "share", "free", "own",
)  # fmt: skip
STEP = st.tuples(
    st.sampled_from(WHAT), st.integers(0, 2), st.integers(0, 2), REFS, REFS, st.integers(1, 7),
    st.integers(0, 31), st.integers(0, 0x1FF),
)  # fmt: skip


def step(trio: Trio, what: str, *numbers: int) -> None:
    """One operation of one guest, sensible or not."""
    who, other, ref, second, page, small, flags = numbers
    guests = (trio.a, trio.b, trio.c)
    guest, peer = guests[who], guests[other]
    frames = trio.machine.frames
    request: GnttabMapGrantRef | GnttabUnmapGrantRef | GnttabUnmapAndReplace | GnttabCopy
    named = trio.machine.ram.q[guest.entry(guest.page(page)) >> 3] >> 12 & 0xFFFFF
    if what == "entry" and ref * 8 * guest.domain.grants.version < 4096:
        flags = FLAGS[flags % len(FLAGS)]
        passes_on = flags & 3 == TRANSITIVE
        low = (guests[small % 3].domain.domid, 0) if passes_on else (small * 64, 512)
        entry(guest, ref, flags, peer.domain.domid, second if passes_on else named, low)
    elif what == "version":
        set_version(guest, 2 if small else 1)
    elif what == "map":
        where = guest.entry(guest.page(page)) if small & CONTAINS_PTE else guest.page(page)
        request = GnttabMapGrantRef(host_addr=where, flags=small, ref=ref, dom=peer.domain.domid)
        op(guest, request)
    elif what == "unmap":
        bus = named << 12 if flags & 1 else 0
        request = GnttabUnmapGrantRef(host_addr=guest.page(page), dev_bus_addr=bus, handle=small % 3)
        op(guest, request)
    elif what == "replace":
        request = GnttabUnmapAndReplace(
            host_addr=guest.page(page), new_addr=guest.page(1 + small % 7), handle=flags % 3
        )
        op(guest, request)
    elif what == "copy":
        request = GnttabCopy(
            source=ref if small & 1 else named, source_domid=peer.domain.domid if small & 1 else DOMID_SELF,
            dest=second if small & 2 else named, dest_domid=peer.domain.domid if small & 2 else DOMID_SELF,
            source_offset=flags, dest_offset=flags, length=flags, flags=small & 3,
        )  # fmt: skip
        op(guest, request)
    elif what == "transfer":
        mine = frames.owned_by(guest.domain.domid).tolist()
        spare = [mfn for mfn in mine if frames.refs[mfn] == frames.allocated[mfn] == 1]
        mfn = spare[0] if spare else named
        peer.domain.max_pages = 2 * PAGES
        op(guest, GnttabTransfer(mfn=mfn, domid=peer.domain.domid, ref=ref))
    elif what == "swap":
        op(guest, GnttabSwapGrantRef(ref_a=ref, ref_b=second))
    elif what == "share":
        shared = peer.domain.grants.shared_frames
        value = shared[small % len(shared)] << 12 | READ_WRITE
        guest.update_va_mapping(guest.page(page), value, 2)
    elif what == "free":
        guest.unmap(guest.page(page))
    elif what == "own":
        mine = frames.owned_by(guest.domain.domid)
        value = int(mine[(flags * 32 + small) % mine.size]) << 12 | READ_WRITE
        guest.update_va_mapping(guest.page(page), value, 2)


@pytest.mark.promise("I-7")
@settings(max_examples=12)
@given(st.lists(STEP, min_size=20, max_size=150), st.permutations([0, 1, 2]))
def test_whatever_guests_do_memory_is_sound_and_death_gives_all_back(
    steps: list[tuple[str, int, int, int, int, int, int, int]], order: list[int]
) -> None:
    trio = Trio()
    try:
        for number, (what, *numbers) in enumerate(steps):
            step(trio, what, *numbers)
            if number % 10 == 0:
                assert trio.machine.audit() == []
        for who in order:
            trio.kill((trio.a, trio.b, trio.c)[who])
            assert trio.machine.audit() == []
        assert trio.machine.frames.free_count == trio.free
    finally:
        trio.machine.close()
