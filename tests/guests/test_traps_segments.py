# SPDX-License-Identifier: GPL-2.0-only
"""Data segments: what hardware lets into them, loading them anew, and the failsafe callback."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.cpu import vmcb as v
from pyhv.domain.callbacks import CallbackEntry
from pyhv.domain.config import DomainConfig
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.testing.guest_machine import PAGES, Paused, Sink, machine, paused

FAILSAFE = 259
DATA, READ_ONLY, CODE, EXECUTE_ONLY, CONFORMING = (
    0x00CFF3000000FFFF, 0x00CFF1000000FFFF, 0x00CFFB000000FFFF, 0x00CFF9000000FFFF, 0x00CFFF000000FFFF,
)  # fmt: skip
BASED = DATA | 0x1234 << 16
ABSENT = DATA & ~(1 << 47)
TABLE = (0, DATA, READ_ONLY, CODE, EXECUTE_ONLY, CONFORMING, BASED, ABSENT)
NAMES = ("ds", "es", "fs", "gs")


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        made.handlers()
        made.vcpu.callbacks.failsafe = CallbackEntry(made.handler(FAILSAFE), False)
        made.put(struct.pack(f"<{len(TABLE)}Q", *TABLE), 0x5000)
        made.remap(made.page(5), 0x65)
        assert made.set_gdt(made.put(made.mfn(made.page(5)).to_bytes(8, "little"), 0x100), 512) == 0
        made.allow_user_mode()
        assert made.execute("nop") is None
        yield made


def change(guest: Paused, entry: int, value: int) -> None:
    address = (guest.mfn(guest.page(5)) << 12) + 8 * entry
    assert guest.update_descriptor(address, value) == 0


def selectors(guest: Paused) -> tuple[int, ...]:
    return tuple(guest.cpu.vmcb.selector(segment) for segment in (v.DS, v.ES, v.FS, v.GS))


@pytest.mark.parametrize(
    ("entry", "loadable"), [(0, True), (1, True), (2, True), (3, True), (4, False), (5, True), (7, False)]
)
def test_user_gs_takes_what_hardware_takes(guest: Paused, entry: int, loadable: bool) -> None:
    """The hypercall succeeds in any case; what cannot be loaded becomes null."""
    assert guest.set_segment_base(3, 8 * entry) == 0
    assert guest.cpu.vmcb.selector(v.GS) == (8 * entry | 3 if loadable and entry else 0)
    native = guest.execute(f"mov eax, {8 * entry | 3 if entry else 0}; mov gs, eax")
    assert (native is None) is loadable
    if not loadable:
        assert native == (11 if entry == 7 else 13)


def test_user_gs_base_comes_from_the_descriptor(guest: Paused) -> None:
    guest.q[v.SEG_BASE[v.GS]] = 0x5000
    assert guest.set_segment_base(3, 6 * 8) == 0
    assert guest.vcpu.other_gs_base == 0x1234
    assert guest.q[v.SEG_BASE[v.GS]] == 0x5000
    assert guest.set_segment_base(3, 0xE02B) == 0
    assert guest.vcpu.other_gs_base == 0


def test_what_has_not_changed_is_not_touched(guest: Paused) -> None:
    assert guest.execute("mov eax, 0xb; mov ds, eax; mov eax, 0x33; mov fs, eax") is None
    guest.q[v.SEG_BASE[v.FS]] = 0x777
    assert guest.execute("nop") is None
    assert selectors(guest) == (0xB, 0, 0x33, 0)
    assert guest.q[v.SEG_BASE[v.FS]] == 0x777


def test_a_changed_descriptor_is_loaded_anew(guest: Paused) -> None:
    assert guest.execute("mov eax, 0x33; mov es, eax; mov fs, eax") is None
    change(guest, 6, DATA | 0x4321 << 16)
    assert guest.execute("nop") is None
    assert guest.handled is None
    assert guest.q[v.SEG_BASE[v.FS]] == guest.q[v.SEG_BASE[v.ES]] == 0x4321


@pytest.mark.parametrize("victims", [("ds",), ("es",), ("fs",), ("gs",), NAMES])
@pytest.mark.parametrize("masks", [False, True])
def test_a_lost_segment_enters_the_failsafe_callback(
    guest: Paused, victims: tuple[str, ...], masks: bool
) -> None:
    guest.vcpu.callbacks.failsafe = CallbackEntry(guest.handler(FAILSAFE), masks)
    guest.vcpu.info.upcall_masked = False
    load = "".join(f"mov {name}, eax; " for name in victims)
    code = f"mov eax, 0x33; {load} mov rcx, 1; mov r11, 2; nop"
    assert guest.execute(code) is None
    before = guest.q[v.RIP]
    change(guest, 6, ABSENT)
    assert guest.go() == FAILSAFE
    words = guest.words(guest.q[v.RSP], 11)
    assert words[:2] == (1, 2)
    assert words[2:6] == tuple(0x33 if name in victims else 0 for name in NAMES)
    assert words[6:8] == (before, 0xE030)
    assert words[8] & 0x200
    assert words[9:] == (guest.stack, 0xE02B)
    assert guest.q[v.RSP] == guest.stack - 88
    assert selectors(guest) == (0, 0, 0, 0)
    assert guest.vcpu.info.upcall_masked is masks


def test_in_user_mode_the_kernel_is_entered(guest: Paused) -> None:
    assert guest.user("mov eax, 0x33; mov gs, eax; mov ds, eax; nop") is None
    change(guest, 6, ABSENT)
    assert guest.go() == FAILSAFE
    assert guest.vcpu.in_kernel
    words = guest.words(guest.q[v.RSP], 11)
    assert words[2:6] == (0x33, 0, 0, 0x33)
    assert words[7] & 3 == 3
    assert guest.q[v.RSP] == guest.kernel_stack - 88


def test_without_a_callback_the_domain_crashes(guest: Paused) -> None:
    guest.vcpu.callbacks.failsafe = CallbackEntry()
    assert guest.execute("mov eax, 0x33; mov ds, eax; nop") is None
    change(guest, 6, ABSENT)
    guest.go()
    assert guest.domain.life.crashed


def test_the_mask_byte_is_saved_as_it_is(guest: Paused) -> None:
    guest.vcpu.info.page.write_u8(guest.vcpu.info.offset + 1, 0x5A)
    assert guest.execute("hlt") == 13
    assert guest.frame(error=True)["cs"] == 0xE030 | 0x5A << 32


def test_the_failsafe_frame_of_a_32_bit_kernel() -> None:
    with machine() as made:
        image = load_image(build_builtin("hello32"), "hello32")
        domain = made.create(image, DomainConfig("hello32", PAGES), console=Sink())
        dispatcher = made.residents[domain.domid].dispatcher
        vcpu = domain.vcpus[0]
        dispatcher.load(vcpu)
        vcpu.callbacks.failsafe = CallbackEntry(0x1234, True, 0xE019)
        vmcb = dispatcher.cpu.vmcb
        flat = (0, 0xFFFFFFFF, vmcb.d[v.SEG_FLAGS[v.DS]])
        vmcb.set_segment(v.ES, 0x0B, *flat)
        vmcb.set_segment(v.GS, 0x12, *flat)
        stack, rip, cs = vmcb.rsp, vmcb.rip, vmcb.selector(v.CS)
        vcpu.descriptors.forget()
        dispatcher.enter()
        assert (vmcb.rip, vmcb.rsp) == (0x1234, stack - 28)
        frame = struct.unpack("<7I", domain.memory.read(stack - 28, 28))
        assert frame[:6] == (0xE021, 0x0B, 0xE021, 0x12, rip, cs | 1 << 16)
        assert vmcb.selector(v.DS) == 0xE021
        assert vmcb.selector(v.ES) == vmcb.selector(v.GS) == 0


@pytest.mark.parametrize("cs", [0xE033, 0xE023], ids=["64 bits", "32 bits"])
@pytest.mark.parametrize("name", NAMES)
def test_iret_clears_null_selectors(guest: Paused, name: str, cs: int) -> None:
    """Linux gives a 32-bit process's selectors RPL 3 and counts on IRET to make 0 of a null one again."""
    for other in NAMES:
        guest.execute(f"mov eax, 0x2b; mov {other}, eax")
    guest.execute(f"mov eax, 3; mov {name}, eax")
    selectors = {other: guest.cpu.vmcb.selector(getattr(v, other.upper())) for other in NAMES}
    assert selectors[name] == 3
    guest.iret(cs=cs)
    for other in NAMES:
        expected = 0 if other == name else selectors[other]
        assert guest.cpu.vmcb.selector(getattr(v, other.upper())) == expected, other
