# SPDX-License-Identifier: GPL-2.0-only
"""Two-level delivery: the bits, the words and the flag that a guest sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.abi.errno import Errno
from pyhv.errors import XenError
from pyhv.events.delivery import Effect, TwoLevel, Unshared

BOTH = Effect.NEWLY_PENDING | Effect.UPCALL


class Page:
    def __init__(self) -> None:
        self.bytes = bytearray(4096)

    def read_u8(self, offset: int) -> int:
        assert 0 <= offset < 4096
        return self.bytes[offset]

    def write_u8(self, offset: int, value: int) -> None:
        assert 0 <= offset < 4096
        self.bytes[offset] = value

    def word(self, offset: int, size: int = 8) -> int:
        return int.from_bytes(self.bytes[offset : offset + size], "little")


def test_an_event_sets_bit_word_and_flag() -> None:
    page = Page()
    events = TwoLevel(page, 2)
    assert events.set_pending(70, 1) == BOTH
    assert page.word(2048 + 8) == 1 << 6
    assert page.word(64 + 8) == 1 << 1
    assert page.bytes[64] == 1
    assert page.bytes[0] == 0, "vCPU 0 is not concerned"
    assert events.upcall_pending(1)
    assert not events.upcall_pending(0)


def test_32_bit_layout() -> None:
    page = Page()
    events = TwoLevel(page, 1, width=32)
    assert events.set_pending(70, 0) == BOTH
    assert page.word(2048 + 8, 4) == 1 << 6
    assert page.word(4, 4) == 1 << 2
    page.write_u8(2176 + 9, 1 << 1)
    assert events.is_masked(73)
    assert events.set_pending(73, 0) == Effect.NEWLY_PENDING
    assert events.unmask(73, 0) == Effect.NOTHING, "word 2 is selected already"


def test_a_pending_event_is_not_set_again() -> None:
    events = TwoLevel(Page(), 1)
    events.set_pending(5, 0)
    assert events.set_pending(5, 0) == Effect.NOTHING


def test_an_event_in_a_selected_word_wakes_nobody() -> None:
    events = TwoLevel(Page(), 1)
    events.set_pending(5, 0)
    assert events.set_pending(6, 0) == Effect.NEWLY_PENDING


def test_a_masked_event_waits_for_unmask() -> None:
    page = Page()
    events = TwoLevel(page, 1)
    page.write_u8(2560, 1 << 3)
    assert events.set_pending(3, 0) == Effect.NEWLY_PENDING
    assert page.word(8) == 0
    assert not events.upcall_pending(0)
    assert events.unmask(3, 0) == Effect.UPCALL
    assert page.word(8) == 1
    assert not events.is_masked(3)
    assert events.unmask(3, 0) == Effect.NOTHING


def test_unmask_without_an_event() -> None:
    page = Page()
    events = TwoLevel(page, 1)
    page.write_u8(2560, 1 << 3)
    assert events.unmask(3, 0) == Effect.NOTHING
    assert not events.upcall_pending(0)


def test_deliverable_follows_flag_and_mask() -> None:
    events = TwoLevel(Page(), 1)
    events.set_upcall_mask(0, True)
    events.set_pending(1, 0)
    assert not events.deliverable(0)
    events.set_upcall_mask(0, False)
    assert events.deliverable(0)


def test_relocation_copies_and_makes_all_pending() -> None:
    page, other = Page(), Page()
    events = TwoLevel(page, 2)
    events.set_upcall_mask(1, True)
    page.write_u8(64 + 16, 0x5A)
    events.relocate(1, other, 4096 - 64)
    assert other.bytes[4032] == 1
    assert other.bytes[4033] == 1
    assert other.word(4040) == (1 << 64) - 1
    assert other.bytes[4048] == 0x5A
    where = events.location(1)
    assert where is not None
    assert (where.page, where.offset) == (other, 4032)
    for i in range(4032, 4096):
        other.bytes[i] = 0
    before = bytes(page.bytes[:128])
    assert events.set_pending(9, 1) == BOTH
    assert bytes(page.bytes[:128]) == before, "the old place is dead"
    assert other.bytes[4032] == 1
    assert page.word(2048) == 1 << 9, "pending bits stay in shared_info"


def test_relocation_of_a_32_bit_guest_spares_its_neighbour() -> None:
    page, other = Page(), Page()
    page.write_u8(8, 0x77)
    TwoLevel(page, 1, width=32).relocate(0, other, 0)
    assert other.word(4, 4) == 0xFFFF_FFFF
    assert other.word(8, 4) == 0x77, "arch.cr2 follows pending_sel"


@pytest.mark.parametrize("offset", [-1, 4033, 1 << 32])
def test_relocation_across_a_page_end(offset: int) -> None:
    events = TwoLevel(Page(), 1)
    with pytest.raises(XenError) as refusal:
        events.relocate(0, Page(), offset)
    assert refusal.value.errno == Errno.ENXIO


def test_relocation_happens_once() -> None:
    events = TwoLevel(Page(), 1)
    events.relocate(0, Page(), 0)
    with pytest.raises(XenError) as refusal:
        events.check_relocation(0, 0)
    assert refusal.value.errno == Errno.EBUSY


def test_a_vcpu_beyond_the_slots_waits_for_its_vcpu_info() -> None:
    page, other = Page(), Page()
    events = TwoLevel(page, 33)
    assert events.location(32) is None
    assert events.set_pending(4, 32) == Effect.NEWLY_PENDING
    assert not events.deliverable(32)
    assert events.upcall_masked(32)
    events.set_upcall_mask(32, False)
    assert sum(page.bytes[:2048]) == 0
    events.relocate(32, other, 128)
    assert events.upcall_pending(32)
    assert events.upcall_masked(32), "it starts masked"


@given(
    st.sampled_from([32, 64]),
    st.lists(
        st.tuples(st.sampled_from(["send", "mask", "unmask", "take"]), st.integers(1, 1023)), max_size=80
    ),
)
def test_no_unmasked_event_is_ever_out_of_sight(width: int, steps: list[tuple[str, int]]) -> None:
    """Pending and unmasked implies: word selected, or the guest has been through that word since."""
    page = Page()
    events = TwoLevel(page, 1, width)
    mask_base, sel = (2560, 8) if width == 64 else (2176, 4)
    for what, port in steps:
        if what == "send":
            events.set_pending(port, 0)
        elif what == "mask":
            page.bytes[mask_base + port // 8] |= 1 << port % 8
        elif what == "unmask":
            events.unmask(port, 0)
        else:
            page.bytes[0] = 0
            selected = page.word(sel, width // 8)
            page.bytes[sel : sel + width // 8] = bytes(width // 8)
            for word in range(width):
                if selected >> word & 1:
                    for bit in range(word * width, (word + 1) * width):
                        if events.is_pending(bit) and not events.is_masked(bit):
                            events.clear_pending(bit)
        visible = page.word(sel, width // 8)
        for p in range(1, 1024):
            if events.is_pending(p) and not events.is_masked(p):
                assert visible >> (p // width) & 1
                assert events.upcall_pending(0)


def test_unshared_remembers_but_wakes_nobody() -> None:
    events = Unshared()
    assert events.set_pending(1, 0) == Effect.NEWLY_PENDING
    assert events.set_pending(1, 0) == Effect.NOTHING
    assert events.is_pending(1)
    assert not events.is_masked(1)
    assert events.unmask(1, 0) == Effect.NOTHING
    events.clear_pending(1)
    assert not events.is_pending(1)
