# SPDX-License-Identifier: GPL-2.0-only
"""`vcpu_info`: what guest and hypervisor find in it, in shared_info and wherever the guest moves it."""

import struct

import pytest

from pyhv.abi.errno import Errno
from pyhv.errors import XenError
from pyhv.events.delivery import Effect, TwoLevel
from pyhv.events.vcpu_info import VcpuInfo
from pyhv.testing.shared_pages import BytesPage

BOTH = Effect.NEWLY_PENDING | Effect.UPCALL


def test_deliverable_follows_flag_and_mask() -> None:
    info = VcpuInfo(BytesPage(), 0, 64)
    info.upcall_masked = True
    assert info.mark_pending()
    assert not info.mark_pending()
    assert (info.upcall_pending, info.upcall_masked, info.deliverable) == (True, True, False)
    info.upcall_masked = False
    assert (info.upcall_pending, info.upcall_masked, info.deliverable) == (True, False, True)


def test_a_mask_that_the_guest_wrote_counts_whatever_its_value() -> None:
    page = BytesPage()
    info = VcpuInfo(page, 3, 64)
    page.write_u8(192, 1)
    page.write_u8(193, 0x5A)
    assert info.upcall_masked
    assert not info.deliverable
    assert info.record[1] == 0x5A


def test_a_word_is_selected_once() -> None:
    page = BytesPage()
    info = VcpuInfo(page, 1, 64)
    assert info.select(63)
    assert not info.select(63)
    assert info.select(0)
    assert page.word(64 + 8) == 1 << 63 | 1


@pytest.mark.parametrize(("width", "offset"), [(64, 16), (32, 8)])
def test_cr2_has_the_guests_width(width: int, offset: int) -> None:
    page = BytesPage()
    info = VcpuInfo(page, 1, width)
    page.write(64 + offset + width // 8, b"\x77")
    info.cr2 = 0x1234_5678_9ABC_DEF0
    assert info.cr2 == 0x1234_5678_9ABC_DEF0 & (1 << width) - 1
    assert page.word(64 + offset, width // 8) == info.cr2
    assert page.bytes[64 + offset + width // 8] == 0x77


def test_the_time_record_is_odd_only_while_it_is_written() -> None:
    versions = []

    class Watched(BytesPage):
        def write(self, offset: int, data: bytes) -> None:
            super().write(offset, data)
            versions.append(self.word(96, 4))

    page = Watched()
    page.bytes[96:100] = b"\xff\xff\xff\xff"  # the guest may write anything there
    info = VcpuInfo(page, 1, 64)
    record = info.write_time(5, 6, 7, -3, stable=True)
    assert versions == [0xFFFF_FFFF, 0]
    assert struct.unpack("<IIQQIbBxx", record) == (0, 0, 5, 6, 7, -3, 1)
    assert record == bytes(page.bytes[96:128])
    assert info.write_time(5, 6, 7, 3, stable=False)[:4] == b"\2\0\0\0"
    assert versions == [0xFFFF_FFFF, 0, 1, 2]


def test_it_moves_with_its_contents_and_with_all_words_selected() -> None:
    page, other = BytesPage(), BytesPage()
    infos = [VcpuInfo(page, number, 64) for number in range(2)]
    events, info = TwoLevel(page, infos), infos[1]
    info.upcall_masked = True
    page.write_u8(64 + 16, 0x5A)
    info.move(other, 4096 - 64)
    assert other.bytes[4032] == 1
    assert other.bytes[4033] == 1
    assert other.word(4040) == (1 << 64) - 1
    assert other.bytes[4048] == 0x5A
    assert (info.page, info.offset, info.moved) == (other, 4032, True)
    for i in range(4032, 4096):
        other.bytes[i] = 0
    before = bytes(page.bytes[:128])
    assert events.set_pending(9, 1) == BOTH
    info.upcall_masked = True
    info.cr2 = 0x77
    assert bytes(page.bytes[:128]) == before, "the old place is dead"
    assert other.bytes[4032:4034] == b"\1\1"
    assert (other.word(4048), info.record[16]) == (0x77, 0x77)
    assert page.word(2048) == 1 << 9, "pending bits stay in shared_info"


def test_a_move_of_a_32_bit_guest_spares_the_neighbour() -> None:
    page, other = BytesPage(), BytesPage()
    page.write_u8(8, 0x77)
    VcpuInfo(page, 0, 32).move(other, 0)
    assert other.word(4, 4) == 0xFFFF_FFFF
    assert other.word(8, 4) == 0x77, "arch.cr2 follows pending_sel"


def test_a_move_onto_itself_loses_nothing() -> None:
    page = BytesPage()
    page.bytes[64:128] = bytes(range(64))
    VcpuInfo(page, 1, 64).move(page, 96)
    assert page.bytes[96 + 16 : 160] == bytes(range(16, 64))


@pytest.mark.parametrize(("width", "offset"), [(64, -1), (64, 4033), (64, 1 << 32), (64, 4), (32, 2)])
def test_a_place_across_a_page_end_or_unaligned_is_refused(width: int, offset: int) -> None:
    other = BytesPage()
    with pytest.raises(XenError) as refusal:
        VcpuInfo(BytesPage(), 0, width).move(other, offset)
    assert refusal.value.errno == Errno.ENXIO
    assert not any(other.bytes)


def test_it_moves_once() -> None:
    info = VcpuInfo(BytesPage(), 0, 64)
    info.move(BytesPage(), 0)
    with pytest.raises(XenError) as refusal:
        info.check_place(0)
    assert refusal.value.errno == Errno.EBUSY


def test_there_is_none_for_a_vcpu_beyond_the_slots() -> None:
    with pytest.raises(ValueError, match="vCPU 32"):
        VcpuInfo(BytesPage(), 32, 64)
