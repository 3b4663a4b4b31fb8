# SPDX-License-Identifier: GPL-2.0-only
"""Crash reports as text."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.cpu.exits import ExitKind
from pyhv.cpu.registers import Registers
from pyhv.loader.image import Symbol
from pyhv.observe.crash import MAX_UNSIZED, Symbols, render
from pyhv.traps.report import CrashReport

SYMBOLS = (
    Symbol(0x100000, 0x40, "start"),
    Symbol(0x100000, 0, "alias"),
    Symbol(0x100040, 0x10, "sized"),
    Symbol(0x100100, 0, "unsized"),
)


@pytest.fixture
def report() -> CrashReport:
    registers = Registers(*range(0x1000, 0x1010))
    registers.rip, registers.rflags = 0x100012, 0x246
    registers.cr2 = 0xDEAD
    registers.rsp = 0x200000
    registers.cs.selector, registers.ss.selector, registers.gs.base = 0xE033, 0xE02B, 7
    return CrashReport(
        domid=3,
        name="mini",
        vcpu=0,
        cause="no handler for #GP",
        time_ns=1_500_000,
        kernel_mode=True,
        width=64,
        pc=0x100012,
        sp=0x200000,
        registers=registers,
        cr3=0x5000,
        code=bytes.fromhex("0f0b c3 90".replace(" ", "")),
        stack=(0x100044, 0x1234, *range(20), 0x100110),
        last_exits=((ExitKind.HYPERCALL, 1, 0x100004), (ExitKind.GENERAL_PROTECTION, 13, 0x999)),
    )


@pytest.mark.parametrize(
    ("va", "name"),
    [
        (0xFFFFF, None),
        (0x100000, "start+0x0/0x40"),
        (0x10003F, "start+0x3f/0x40"),
        (0x100040, "sized+0x0/0x10"),
        (0x100050, None),
        (0x100100, "unsized+0x0"),
        (0x100100 + MAX_UNSIZED, None),
    ],
)
def test_symbols(va: int, name: str) -> None:
    assert Symbols(SYMBOLS).name(va) == name


@given(st.lists(st.builds(Symbol, st.integers(0, 60), st.integers(0, 9), st.sampled_from("abc"))))
def test_a_named_address_lies_in_the_symbol(symbols: list[Symbol]) -> None:
    names = Symbols(symbols)
    for va in range(70):
        found = names.name(va)
        if found:
            name, offset = found.split("+")
            start = va - int(offset.split("/")[0], 16)
            assert any(symbol.va == start and symbol.name == name for symbol in symbols)


@pytest.mark.promise("E-4")
def test_the_whole_report(report: CrashReport) -> None:
    text = render(report, SYMBOLS, [b"last \x1b[31mwords"])
    assert "Domain 3 (mini) crashed at 0.001500 s: no handler for #GP" in text
    assert "vCPU 0, in kernel mode, at start+0x12/0x40" in text
    assert "rip 0000000000100012" in text
    assert "cr2 000000000000dead" in text
    assert "flags IF ZF PF" in text
    assert "=> 0000000000100012  ud2" in text
    assert "   0000000000100014  ret" in text
    assert "0000000000200000  0000000000100044  sized+0x4/0x10" in text
    assert "unsized+0x10" in text  # deep in the stack, shown because it has a name
    assert text.count("\n   00000000002000") == 9  # eight words and the named one
    assert "mmu_update" in text
    assert "start+0x4/0x40" in text
    assert "#GP" in text
    assert "  last \\x1b[31mwords\n" in text
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_a_report_of_which_little_is_known(report: CrashReport) -> None:
    bare = dataclasses.replace(report, code=b"", stack=(), last_exits=(), kernel_mode=False)
    text = render(bare)
    assert "in user mode\n" in text
    assert "Code: not readable" in text
    assert "Stack: not readable" in text
    assert "none recorded" in text


def test_code_that_is_no_instruction(report: CrashReport) -> None:
    assert "06 is no instruction" in render(dataclasses.replace(report, code=b"\x06"))


def test_a_32_bit_guest() -> None:
    """Its registers have its names and 8 digits, its code is 32-bit code, its stack is of 4-byte words."""
    registers = Registers(rax=1 << 32 | 0x1000, rbx=0x1001)
    registers.ds.selector = 0xE021
    text = render(
        CrashReport(
            domid=1, name="narrow", vcpu=0, cause="why", time_ns=0, kernel_mode=False, width=32, pc=0x100040,
            sp=0xFFFF_FFF8, registers=registers, cr3=0x5000, code=bytes.fromhex("40c3"),
            stack=(1, 2, 0x100044),
            last_exits=((ExitKind.HYPERCALL, 29, 0x100004),),
        ),
        SYMBOLS,
    )  # fmt: skip
    assert "in user mode, at sized+0x0/0x10" in text
    assert "    eax 00001000     ebx 00001001" in text
    assert "    cr3 00005000" in text
    assert "     ds 0000e021" in text
    assert "=> 00100040  inc eax" in text
    assert "   fffffff8  00000001\n   fffffffc  00000002\n   00000000  00100044  sized+0x4/0x10" in text
    assert "   00100004  hypercall" in text
