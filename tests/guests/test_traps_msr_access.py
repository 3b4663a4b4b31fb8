# SPDX-License-Identifier: GPL-2.0-only
"""Model-specific registers, as a kernel reads and writes them with RDMSR and WRMSR."""

from collections.abc import Iterator

import pytest
from test_traps_privileged import rdmsr, value, wrmsr

from pyhv.cpu import vmcb as v
from pyhv.testing.guest_machine import Paused, paused
from pyhv.testing.vectors import GP


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        made.handlers()
        yield made


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (0xC0000080, 0xD01),
        (0x1B, 0xFEE00900),
        (0x277, 0x0000050100070406),
        (0x345, 0),
        (0x198, 0),
        (0x199, 0),
        (0x8B, 0),
        (0x401, 0),
        (0x179, 0x1000C02),
    ],
)
def test_msrs_with_a_value(guest: Paused, number: int, wanted: int) -> None:
    assert rdmsr(guest, number) == wanted


@pytest.mark.parametrize(
    "number",
    [
        0xC0000081,
        0xC0000082,
        0xC0000083,
        0xC0000084,
        0x174,
        0x175,
        0x176,
        0x1D9,
        0x800,
        0x40000001,
        0x12345678,
    ],
)
def test_msrs_that_may_not_be_read(guest: Paused, number: int) -> None:
    assert rdmsr(guest, number) is None


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0x10, 0),
        (0x1B, 0xFEE00900),
        (0x277, 0x0000050100070406),
        (0xC0000080, 0),
        (0xC0000081, 0),
        (0xC0000082, 0),
        (0x174, 0),
        (0xCE, 0),
        (0x1D9, 0),
        (0x830, 0),
        (0xC0000103, 1 << 32),
        (0xC0000100, 0x800000000000),
        (0xC0000101, 0xFFFF7FFFFFFFFFFF),
        (0xC0000102, 1 << 63),
        (0x40000000, 1),
        (0x40000000, 0x7FFFFFFF000),
    ],
)
def test_msrs_that_may_not_be_written(guest: Paused, number: int, written: int) -> None:
    assert not wrmsr(guest, number, written)


@pytest.mark.parametrize(
    ("number", "written"),
    [(0xC0000080, 0xD01), (0x8B, 0), (0x199, 5), (0x400, 0), (0x17A, 0), (0x1A0, 1)],
)
def test_msrs_whose_writes_are_accepted(guest: Paused, number: int, written: int) -> None:
    assert wrmsr(guest, number, written)


def test_segment_bases(guest: Paused) -> None:
    for number, wanted in (
        (0xC0000100, 0x1234),
        (0xC0000101, 0xFFFF880000000010),
        (0xC0000102, 0x7FFFFFFFF000),
    ):
        assert wrmsr(guest, number, wanted)
        assert rdmsr(guest, number) == wanted
    assert guest.vcpu.other_gs_base == 0x7FFFFFFFF000
    assert guest.q[v.SEG_BASE[v.FS]] == 0x1234
    assert wrmsr(guest, 0xC0000100, guest.scratch)
    guest.put((77).to_bytes(8, "little"), 0x10)
    assert value(guest, "mov rax, fs:[0x10]") == 77


def test_hypercall_page_at_run_time(guest: Paused) -> None:
    pfn = guest.page(2) >> 12
    assert wrmsr(guest, 0x40000000, pfn << 12)
    assert guest.get(14, 0x2000 + 17 * 32)[3:10] == b"\xb8\x11\x00\x00\x00\x0f\x05"
    assert (
        guest.execute(f"xor edi, edi; xor esi, esi; mov eax, {guest.page(2) + 17 * 32:#x}; call rax") is None
    )
    assert guest.q[v.RAX] == 4 << 16 | 17


def test_the_hypercall_page_may_not_be_a_page_table(guest: Paused) -> None:
    frames = guest.machine.frames
    table = frames.m2p[guest.vcpu.paging.kernel_l4] if frames.m2p is not None else 0
    assert not wrmsr(guest, 0x40000000, table << 12)


def test_before_a_kernel_can_take_faults_unknown_msrs_read_as_zero(guest: Paused) -> None:
    guest.vcpu.traps.handlers[GP] = (0, 0)
    assert rdmsr(guest, 0x174) == 0
    assert rdmsr(guest, 0xC0000080) == 0xD01
