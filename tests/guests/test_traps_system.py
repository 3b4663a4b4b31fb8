# SPDX-License-Identifier: GPL-2.0-only
"""The system part of the opcode map (Intel SDM volume 2, chapters 3 to 5 and appendix A): what each of its
instructions raises outside ring 0, on a processor with the CPUID that a guest is shown.

One row for each instruction; `#UD` and `#GP` are right for user and kernel, unless the hypervisor performs
the instruction for a kernel.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pyhv.abi.x86 import CR4_DE, Vector
from pyhv.testing.compat_machine import Paused32, paused32
from pyhv.testing.guest_machine import Paused, paused

GP, UD = Vector.GP, Vector.UD


class Row(NamedTuple):
    """An instruction, RBX at data of its own: exception of user mode, and of a kernel, in either width.

    None: it runs. `user32` and `kernel` are as `user` where they are not given.
    """

    name: str
    code: str
    user: int | None
    user32: int | None = -1
    kernel: int | None = -1


def _each_rm(name: str, first: int, outcome: int | None) -> list[Row]:
    return [Row(f"{name} {first + rm:02X}", f"0f01{first + rm:02x}", outcome) for rm in range(8)]


ROWS = [
    Row("SLDT", "0f00c0", None),
    Row("STR", "0f00c8", None),
    Row("LLDT", "31c00f00d0", GP),
    Row("LTR", "31c00f00d8", GP),
    Row("VERR", "0f00e0", None),
    Row("VERW", "0f00e8", None),
    Row("0F 00 /6", "0f00f0", UD),
    Row("0F 00 /7", "0f00f8", UD),
    Row("SGDT", "0f0103", None),
    Row("SIDT", "0f010b", None),
    Row("LGDT", "0f0113", GP),
    Row("LIDT", "0f011b", GP),
    Row("SMSW", "0f0123", None),
    Row("0F 01 /5", "0f012b", UD),
    Row("LMSW", "0f0133", GP),
    Row("INVLPG", "0f013b", GP),
    *_each_rm("VMX", 0xC0, UD),
    *_each_rm("MONITOR, SMAP", 0xC8, UD),
    *_each_rm("XSAVE, RTM", 0xD0, UD),
    *_each_rm("SVM", 0xD8, UD),
    Row("SMSW of a register", "0f01e0", None),
    *_each_rm("PKU", 0xE8, UD),
    Row("LMSW of a register", "0f01f0", GP),
    Row("SWAPGS", "0f01f8", GP, UD),
    *[Row(f"0F 01 {last:02X}", f"0f01{last:02x}", UD) for last in range(0xFA, 0x100)],
    Row("LAR", "0f02c0", None),
    Row("LSL", "0f03c0", None),
    Row("0F 04", "0f04", UD),
    Row("CLTS", "0f06", GP, kernel=None),
    Row("SYSRET", "0f07", GP, UD),
    Row("INVD", "0f08", GP),
    Row("WBINVD", "0f09", GP, kernel=None),
    Row("0F 0A", "0f0a", UD),
    Row("UD2", "0f0b", UD),
    Row("0F 0C", "0f0c", UD),
    Row("FEMMS", "0f0e", UD),
    Row("PFADD", "0f0fc09e", UD),
    Row("MOV from CR0", "0f20c0", GP, kernel=None),
    *[Row(f"MOV from CR{n}", f"0f20{0xC0 | n << 3:02x}", UD) for n in (1, 5, 6, 7)],
    *[Row(f"MOV to CR{n}", f"0f22{0xC0 | n << 3:02x}", UD) for n in (1, 5, 6, 7)],
    Row("MOV from CR2", "0f20d0", GP, kernel=None),
    Row("MOV from CR3", "0f20d8", GP, kernel=None),
    Row("MOV from CR4", "0f20e0", GP, kernel=None),
    Row("MOV from CR1, as from memory", "0f2008", UD),
    Row("MOV from DR0", "0f21c0", GP, kernel=None),
    Row("MOV from DR4", "0f21e0", GP, kernel=None),
    Row("MOV from DR7", "0f21f8", GP, kernel=None),
    Row("MOV to DR5", "b8000400000f23e8", GP, kernel=None),
    *[
        Row(f"0F {last:02X}", f"0f{last:02x}", UD)
        for last in (0x24, 0x25, 0x26, 0x27, 0x36, 0x39, 0x3B, 0x3F)
    ],
    Row("WRMSR", "b9efbeadde0f30", GP),
    Row("RDTSC", "0f31", None),
    Row("RDMSR", "b9efbeadde0f32", GP),
    Row("RDPMC", "31c90f33", GP),
    Row("SYSEXIT", "0f35", GP),
    Row("GETSEC", "0f37", UD),
    Row("VMREAD", "0f78c0", UD),
    Row("VMWRITE", "0f79c0", UD),
    Row("CPUID", "0fa2", None),
    Row("0F A6", "0fa6c0", UD),
    Row("0F A7", "0fa7c0", UD),
    Row("RSM", "0faa", UD),
    Row("FXSAVE", "0fae03", None),
    Row("LDMXCSR of 0x1f80", "c703801f00000fae13", None),
    Row("XSAVE", "0fae23", UD),
    Row("XRSTOR", "0fae2b", UD),
    Row("XSAVEOPT", "0fae33", UD),
    Row("CLWB", "660fae33", UD),
    Row("CLFLUSH", "0fae3b", None),
    Row("CLFLUSHOPT", "660fae3b", UD),
    *[Row(f"FSGSBASE /{n}", f"f30fae{0xC0 | n << 3:02x}", UD) for n in range(4)],
    Row("0F AE /4 of a register", "0faee0", UD),
    Row("LFENCE", "0faee8", None),
    Row("MFENCE", "0faef0", None),
    Row("SFENCE", "0faef8", None),
    Row("UD1", "0fb9c0", UD),
    Row("CMPXCHG8B", "0fc70b", None),
    Row("CMPXCHG8B of a register", "0fc7c8", UD),
    Row("XRSTORS", "0fc71b", UD),
    Row("XSAVEC", "0fc723", UD),
    Row("XSAVES", "0fc72b", UD),
    Row("VMPTRLD", "0fc733", UD),
    Row("VMXON", "f30fc733", UD),
    Row("RDRAND", "0fc7f0", UD),
    Row("RDSEED", "0fc7f8", UD),
    Row("RDPID", "f30fc7f8", UD),
    Row("INVEPT", "660f388003", UD),
    Row("INVPCID", "660f388203", UD),
    Row("UD0", "0fffc0", UD),
    Row("HLT", "f4", GP),
    Row("CLI", "fa", GP),
    Row("STI", "fb", GP),
    Row("ICEBP", "f1", Vector.DB),
]
ONLY_64 = [
    Row("MOV from CR8", "440f20c0", GP),
    *[Row(f"MOV from CR{n}", f"440f20{0xC0 | (n - 8) << 3:02x}", UD) for n in (9, 10, 12, 15)],
    *[Row(f"MOV from DR{n}", f"440f21{0xC0 | (n - 8) << 3:02x}", UD) for n in (8, 12, 15)],
    Row("MOV to DR15", "440f23f8", UD),
]


def _names(row: Row) -> str:
    return row.name


@pytest.fixture(scope="module")
def wide() -> Iterator[Paused]:
    with paused() as guest:
        guest.handlers()
        guest.allow_user_mode()
        yield guest


@pytest.fixture(scope="module")
def narrow() -> Iterator[Paused32]:
    with paused32() as guest:
        guest.handlers()
        yield guest


@pytest.mark.promise("C-12")
@pytest.mark.parametrize("row", ROWS + ONLY_64, ids=_names)
def test_64_bits(wide: Paused, row: Row) -> None:
    code = bytes.fromhex(row.code)
    for user, expected in ((True, row.user), (False, row.user if row.kernel == -1 else row.kernel)):
        assert (wide.user(code) if user else _in_kernel(wide, code)) == expected, "user" if user else "kernel"
        if expected == GP:
            assert wide.frame(error=True)["error"] == 0
    assert wide.domain.alive


def _in_kernel(guest: Paused, code: bytes) -> int | None:
    if not guest.vcpu.in_kernel:
        guest.cpu.raise_exception(3)
    return guest.execute(code)


@pytest.mark.promise("C-12")
@pytest.mark.parametrize("row", ROWS, ids=_names)
def test_32_bits(narrow: Paused32, row: Row) -> None:
    code = bytes.fromhex(row.code)
    user = row.user if row.user32 == -1 else row.user32
    for kernel, expected in ((False, user), (True, user if row.kernel == -1 else row.kernel)):
        narrow.vcpu.in_kernel or narrow.into_kernel()
        assert (narrow.execute(code) if kernel else narrow.user(code)) == expected, kernel
        if expected == GP:
            assert narrow.frame(error=True)["error"] == 0
    assert narrow.domain.alive


@pytest.mark.parametrize("code", ["0f21e0", "0f21e8", "0f23e0", "0f23e8"])
def test_with_debugging_extensions_dr4_and_dr5_are_none(code: str) -> None:
    with paused() as guest:
        guest.handlers()
        guest.allow_user_mode()
        guest.vcpu.cr4 |= CR4_DE
        assert guest.execute(bytes.fromhex(code)) == UD
        assert guest.user(bytes.fromhex(code)) == UD
