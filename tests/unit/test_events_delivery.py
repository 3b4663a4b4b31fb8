# SPDX-License-Identifier: GPL-2.0-only
"""Two-level delivery: the bits, the words and the flag that a guest sees."""

from hypothesis import given
from hypothesis import strategies as st

from pyhv.events.delivery import Effect, TwoLevel, Unshared
from pyhv.events.vcpu_info import VcpuInfo
from pyhv.testing.shared_pages import BytesPage

BOTH = Effect.NEWLY_PENDING | Effect.UPCALL


def two_level(page: BytesPage, vcpus: int = 1, width: int = 64) -> tuple[TwoLevel, list[VcpuInfo]]:
    """A domain's events, and the records of its vCPUs."""
    infos = [VcpuInfo(page, number, width) for number in range(vcpus)]
    return TwoLevel(page, infos, width), infos


def test_an_event_sets_bit_word_and_flag() -> None:
    page = BytesPage()
    events, infos = two_level(page, 2)
    assert events.set_pending(70, 1) == BOTH
    assert page.word(2048 + 8) == 1 << 6
    assert page.word(64 + 8) == 1 << 1
    assert page.bytes[64] == 1
    assert page.bytes[0] == 0, "vCPU 0 is not concerned"
    assert [info.upcall_pending for info in infos] == [False, True]


def test_32_bit_layout() -> None:
    page = BytesPage()
    events, _ = two_level(page, width=32)
    assert events.set_pending(70, 0) == BOTH
    assert page.word(2048 + 8, 4) == 1 << 6
    assert page.word(4, 4) == 1 << 2
    page.write_u8(2176 + 9, 1 << 1)
    assert events.is_masked(73)
    assert events.set_pending(73, 0) == Effect.NEWLY_PENDING
    assert events.unmask(73, 0) == Effect.NOTHING, "word 2 is selected already"


def test_a_pending_event_is_not_set_again() -> None:
    events, _ = two_level(BytesPage())
    events.set_pending(5, 0)
    assert events.set_pending(5, 0) == Effect.NOTHING


def test_an_event_in_a_selected_word_wakes_nobody() -> None:
    events, _ = two_level(BytesPage())
    events.set_pending(5, 0)
    assert events.set_pending(6, 0) == Effect.NEWLY_PENDING


def test_a_masked_event_waits_for_unmask() -> None:
    page = BytesPage()
    events, (info,) = two_level(page)
    page.write_u8(2560, 1 << 3)
    assert events.set_pending(3, 0) == Effect.NEWLY_PENDING
    assert page.word(8) == 0
    assert not info.upcall_pending
    assert events.unmask(3, 0) == Effect.UPCALL
    assert page.word(8) == 1
    assert not events.is_masked(3)
    assert events.unmask(3, 0) == Effect.NOTHING


def test_unmask_without_an_event() -> None:
    page = BytesPage()
    events, (info,) = two_level(page)
    page.write_u8(2560, 1 << 3)
    assert events.unmask(3, 0) == Effect.NOTHING
    assert not info.upcall_pending


@given(
    st.sampled_from([32, 64]),
    st.lists(
        st.tuples(st.sampled_from(["send", "mask", "unmask", "take"]), st.integers(1, 1023)), max_size=80
    ),
)
def test_no_unmasked_event_is_ever_out_of_sight(width: int, steps: list[tuple[str, int]]) -> None:
    """Pending and unmasked implies: word selected, or the guest has been through that word since."""
    page = BytesPage()
    events, (info,) = two_level(page, width=width)
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
                assert info.upcall_pending


def test_unshared_remembers_but_wakes_nobody() -> None:
    events = Unshared()
    assert events.set_pending(1, 0) == Effect.NEWLY_PENDING
    assert events.set_pending(1, 0) == Effect.NOTHING
    assert events.is_pending(1)
    assert not events.is_masked(1)
    assert events.unmask(1, 0) == Effect.NOTHING
    events.clear_pending(1)
    assert not events.is_pending(1)
