# SPDX-License-Identifier: GPL-2.0-only
"""RDMSR and WRMSR over the whole space of numbers, as Xen 4.17 answers a PV domU on a processor of Intel's.

The table below was written from Xen's behaviour, not from pyhv's table: it says what reading gives and which
values may be written. Everything else is #GP(0).
"""

from collections.abc import Callable, Iterator

import pytest

from pyhv.address import MASK64
from pyhv.cpu import vmcb as v
from pyhv.testing.compat_machine import paused32
from pyhv.testing.guest_machine import TRAPS, Paused, passes, paused
from pyhv.testing.vectors import GP
from pyhv.traps.msr import Refused, read_msr, write_msr

Value = int | None
Writable = Callable[[int], bool]


def never(_value: int) -> bool:
    return False


def always(_value: int) -> bool:
    return True


def zero(value: int) -> bool:
    return value == 0


def canonical(value: int) -> bool:
    return value < 1 << 47 or value >= MASK64 + 1 - (1 << 47)


EFER = 0xD01
XEN: dict[range, tuple[Value, Writable]] = {
    range(0x2): (0, never),  # P5_MC_ADDR, P5_MC_TYPE
    range(0x17, 0x18): (0, never),  # PLATFORM_ID
    range(0x1B, 0x1C): (0xFEE00900, never),  # APIC_BASE, of vCPU 0
    range(0x3A, 0x3B): (1, never),  # FEATURE_CONTROL
    range(0x8B, 0x8C): (0, zero),  # UCODE_REV
    range(0xC1, 0xC9): (0, always),  # PERFCTRn
    range(0xCE, 0xCF): (1 << 31, never),  # PLATFORM_INFO
    range(0xE7, 0xE9): (None, always),  # MPERF, APERF
    range(0x140, 0x141): (0, lambda value: value in (0, 1)),  # MISC_FEATURES_ENABLES
    range(0x179, 0x17A): (0x1000C02, always),  # MCG_CAP
    range(0x17A, 0x17C): (0, always),  # MCG_STATUS, MCG_CTL
    range(0x186, 0x18A): (0, always),  # EVNTSELn
    range(0x198, 0x199): (0, never),  # PERF_STATUS
    range(0x199, 0x19A): (0, always),  # PERF_CTL
    range(0x19A, 0x19B): (None, always),  # THERM_CONTROL
    range(0x19C, 0x19D): (0, never),  # THERM_STATUS
    range(0x1A0, 0x1A1): (0x801801, always),  # MISC_ENABLE
    range(0x1B0, 0x1B1): (None, always),  # ENERGY_PERF_BIAS
    range(0x277, 0x278): (0x0000050100070406, never),  # PAT
    range(0x280, 0x2A0): (0, always),  # MCi_CTL2
    range(0x309, 0x30C): (0, always),  # FIXED_CTRn
    range(0x345, 0x346): (0, never),  # PERF_CAPABILITIES
    range(0x38D, 0x391): (0, always),  # FIXED_CTR_CTRL, PERF_GLOBAL_*
    range(0x400, 0x401): (MASK64, always),  # MC0_CTL
    range(0x401, 0x404): (0, zero),  # MC0_STATUS, MC0_ADDR, MC0_MISC
    range(0x404, 0x405): (MASK64, always),
    range(0x405, 0x408): (0, zero),
    range(0x408, 0x480): (0, always),  # banks that do not exist
    range(0x40000000, 0x40000001): (0, zero),  # the hypercall page: page 0 is the guest's
    range(0xC0000080, 0xC0000081): (EFER, lambda value: value == EFER),
    range(0xC0000100, 0xC0000103): (0, canonical),  # FS_BASE, GS_BASE, KERNEL_GS_BASE
    range(0xC0000103, 0xC0000104): (0, lambda value: value < 1 << 32),  # TSC_AUX
    range(0xC001001F, 0xC0010020): (0, always),  # NB_CFG
}
TSC = 0x10
VALUES = (0, 1, 2, EFER, 1 << 31, 1 << 32, 1 << 47, 1 << 63, MASK64, 0xFEE00900)
SPACE = (
    *range(0x2000), 0x2000, 0xFFFF, 0x3FFFFFFF, *range(0x40000000, 0x40000400), 0x4000FFFF, 0x80000000,
    *range(0xC0000000, 0xC0002000), *range(0xC0010000, 0xC0012000), 0xFFFFFFFF,
)  # fmt: skip


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        made.handlers()
        yield made


def expected(number: int) -> tuple[Value, Writable]:
    return next((answer for numbers, answer in XEN.items() if number in numbers), (None, never))


def read(guest: Paused, number: int) -> Value:
    try:
        return read_msr(guest.cpu, number)
    except Refused:
        return None


def written(guest: Paused, number: int, value: int) -> bool:
    try:
        write_msr(guest.cpu, number, value)
    except Refused:
        return False
    return True


@pytest.mark.promise("C-4")
def test_reading_over_the_whole_space(guest: Paused) -> None:
    found = {number: read(guest, number) for number in SPACE if number != TSC}
    wrong = {hex(n): got for n, got in found.items() if got != expected(n)[0]}
    assert not wrong
    assert read(guest, TSC) is not None


@pytest.mark.promise("C-4")
def test_writing_over_the_whole_space(guest: Paused) -> None:
    wrong = [
        (hex(number), hex(value))
        for number in SPACE
        for value in VALUES
        if written(guest, number, value) is not expected(number)[1](value)
    ]
    assert not wrong


def test_what_a_32_bit_guest_finds_otherwise() -> None:
    """No bases, no long mode; all else is the same."""
    with paused32() as narrow:
        narrow.handlers()
        differs = {n: read(narrow, n) for n in SPACE if n != TSC and read(narrow, n) != expected(n)[0]}
        assert differs == {0xC0000080: 0x800, 0xC0000100: None, 0xC0000101: None, 0xC0000102: None}
        assert not written(narrow, 0xC0000100, 0)
        assert written(narrow, 0xC0000080, 0x800)


def test_before_there_is_a_handler_what_the_machine_has_reads_as_zero(guest: Paused) -> None:
    """But for Xen's own numbers, and for what no machine has."""
    guest.vcpu.traps.handlers[GP] = (0, 0)
    assert read(guest, 0x174) == read(guest, 0x10A) == read(guest, 0xC0000082) == 0
    assert read(guest, 0x40000001) is None
    assert read(guest, 0x12345678) is None
    assert not written(guest, 0x174, 0)


def test_registers_of_the_machine_check_architecture(guest: Paused) -> None:
    """A vCPU's own: what it writes to MCG_STATUS and to the controls of its two banks it reads back."""
    for number in (0x17A, 0x280, 0x281):
        assert written(guest, number, number << 32)
    assert [read(guest, number) for number in (0x17A, 0x280, 0x281, 0x282)] == [
        0x17A << 32, 0x280 << 32, 0x281 << 32, 0,
    ]  # fmt: skip
    assert written(guest, 0x179, 0)
    assert written(guest, 0x400, 0)
    assert (read(guest, 0x179), read(guest, 0x400)) == (0x1000C02, MASK64)


def test_a_kernel_that_tries_every_number() -> None:
    """RDMSR as an instruction: each is done or is #GP(0)."""
    readable = sum(expected(number)[0] is not None for number in range(0x800)) + 1  # and the TSC
    passes(
        f"""
    xor r12d, r12d                              # the MSR
    xor r13d, r13d                              # how many could be read
sweep:
    trap_begin refused
    mov ecx, r12d
    rdmsr
    inc r13d
refused:
    inc r12d
    cmp r12d, 0x800
    jb sweep
    mov qword ptr [rip + trap_resume], 0
    cmp r13d, {readable}
    check e, "another number of MSRs than Xen has can be read"
    succeed
""",
        prologue=TRAPS,
    )


def test_the_table_registers_of_the_host_cannot_be_seen(guest: Paused) -> None:
    """SIDT shows an empty table: there is none. SGDT, SLDT, STR and SMSW show what they do on every Xen."""
    guest.allow_user_mode()
    for run in (guest.execute, guest.user):
        guest.put(b"\xff" * 16, 0x5000)
        assert run(f"mov rbx, {guest.page(5)}; sidt [rbx]") is None
        assert guest.get(16, 0x5000) == bytes(10) + b"\xff" * 6


def test_nor_by_a_32_bit_guest() -> None:
    with paused32() as narrow:
        narrow.handlers()
        for run in (narrow.execute, narrow.user):
            narrow.put(b"\xff" * 16, 0x5000)
            code = f"mov ebx, {narrow.page(5)}; sidt [ebx]; str eax; mov [ebx + 8], eax; smsw eax"
            assert run(code) is None
            assert narrow.get(12, 0x5000) == bytes(6) + b"\xff\xff" + (0xE040).to_bytes(4, "little")
            assert narrow.q[v.RAX] & 0xFFFF == 0x33
