# SPDX-License-Identifier: GPL-2.0-only
"""Registers by name: into a live engine and out of it, as a FXSAVE area, and as the ABI's context."""

import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from bare_engine import Bare
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.abi import shared
from pyhv.abi.structs import TrapInfo
from pyhv.cpu import registers as named
from pyhv.cpu import vmcb as v
from pyhv.cpu.context import Context
from pyhv.cpu.fpu import Fxsave
from pyhv.cpu.registers import SEGMENTS, Registers, SegmentRegister
from pyhv.cpu.vmcb import GENERAL_NAMES
from pyhv.domain.callbacks import CallbackEntry
from pyhv.hypercalls.guest_context import GuestContext
from pyhv.state import construct, state

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
BIG = 1 << 22

FXSAVES = st.builds(
    Fxsave, fcw=U16, fsw=U16, ftw=st.integers(0, 255), fop=U16, fip=U64, fcs=U16, fdp=U64, fds=U16,
    mxcsr=U16, st=st.lists(st.binary(min_size=10, max_size=10), min_size=8, max_size=8),
    xmm=st.lists(st.binary(min_size=16, max_size=16), min_size=16, max_size=16),
)  # fmt: skip
SEGMENT_REGISTERS = st.builds(SegmentRegister, selector=U16, base=U64, limit=U32, attributes=U32)
REGISTERS = st.builds(
    Registers,
    **dict.fromkeys((*GENERAL_NAMES, "rip", "cr2"), U64),
    rflags=st.integers(0, 0x3FFFFF).map(lambda value: value & 0x3D7FD5 | 2),
    **dict.fromkeys(SEGMENTS, SEGMENT_REGISTERS),
    cpl=st.integers(0, 3),
    task_switched=st.booleans(),
    mov_ss=st.booleans(),
    fpu=FXSAVES,
)


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    made = Bare()
    yield made
    made.close()


@given(registers=REGISTERS, others=REGISTERS)
def test_an_engine_gives_back_what_it_was_given(bare: Bare, registers: Registers, others: Registers) -> None:
    """Nothing of the registers that were there before remains."""
    named.write(bare.engine, others)
    named.write(bare.engine, registers)
    block = bytes(bare.vmcb.raw)
    assert named.read(bare.engine) == registers
    assert bytes(bare.vmcb.raw) == block
    named.write(bare.engine, construct(Registers, state(registers)))
    assert bytes(bare.vmcb.raw) == block


@given(registers=st.lists(REGISTERS, min_size=2, max_size=2))
def test_contexts_of_one_engine(bare: Bare, registers: list[Registers]) -> None:
    """Each keeps its registers, loaded or at rest, whoever reads or sets those of another."""
    bare.engine.holder = None
    contexts = [Context(bare.engine) for _ in registers]
    assert all(context.empty for context in contexts)
    for context, wanted in zip(contexts, registers, strict=True):
        context.registers = wanted
    assert not any(context.loaded or context.empty for context in contexts)
    for at in (0, 1, 0):
        contexts[at].load()
        assert named.read(bare.engine) == registers[at]
        assert [context.registers for context in contexts] == registers
        assert [context.loaded for context in contexts] == [at == 0, at == 1]
    contexts[0].rest()
    assert bare.engine.holder is None
    assert [context.registers for context in contexts] == registers


def test_loading_tells_once_that_registers_were_set_by_name(bare: Bare) -> None:
    bare.engine.holder = None
    context, other = Context(bare.engine), Context(bare.engine)
    context.registers, other.registers = Registers(), Registers()
    assert context.load()
    assert not context.load()
    assert other.load()
    assert not context.load()
    context.registers = Registers(rax=1)
    assert context.load()
    assert bare.q[v.RAX] == 1


LAZY = {
    "add": ("mov eax, 0x7fffffff; add eax, 1", 0x894),
    "sub": ("mov eax, 1; sub eax, 2", 0x95),
    "adc": ("stc; mov eax, -1; adc eax, 0", 0x55),
    "shift": ("mov eax, 0x80000001; shl eax, 1", 0x801),
    "logic": ("xor eax, eax; std", 0x444),
}


@pytest.mark.parametrize("name", LAZY)
def test_lazy_flags_are_resolved(name: str) -> None:
    """The flags of an instruction whose result is all that the emulator has kept of them."""
    code, expected = LAZY[name]
    bare = Bare()
    try:
        bare.run(code + "; int3")
        found = named.read(bare.engine)
        assert found.rflags & 0xCD5 & ~0x10 == expected & ~0x10
        named.write(bare.engine, found)
        assert bare.engine.rflags() == found.rflags
    finally:
        bare.close()


def test_rounding_modes_come_along() -> None:
    """1/3 rounded up and down, by x87 and SSE, on an engine that has never executed FLDCW or LDMXCSR."""
    divide = """fld1; push 3; fild dword ptr [rsp]; fdivp; fstp qword ptr [rsp]; pop rax
        mov edx, 1; cvtsi2sd xmm0, edx; mov edx, 3; cvtsi2sd xmm1, edx; divsd xmm0, xmm1; movq rdx, xmm0
        int3"""
    results = []
    for rounding in (1, 2):
        bare = Bare()
        try:
            registers = named.read(bare.engine)
            registers.fpu.fcw, registers.fpu.mxcsr = 0x27F | rounding << 10, 0x1F80 | rounding << 13
            cr3 = bare.q[v.CR + 3]
            named.write(bare.engine, registers)
            bare.q[v.CR + 3] = cr3
            bare.run(divide)
            results.append((bare.q[v.RAX], bare.q[v.RDX]))
        finally:
            bare.close()
    down, up = results
    assert down == (0x3FD5555555555555, 0x3FD5555555555555)
    assert up == (0x3FD5555555555556, 0x3FD5555555555556)


# -- the FXSAVE area and the ABI's context ------------------------------------------------------------------


@given(area=FXSAVES)
def test_an_area_is_what_it_was(area: Fxsave) -> None:
    """Selectors go with 32-bit pointers only, as in the instruction's own two forms."""
    if (area.fip | area.fdp) >> 32:
        area.fcs = area.fds = 0
    assert Fxsave.unpack(area.pack()) == area
    assert len(area.pack()) == 512
    assert Fxsave.unpack(area.pack()).pack() == area.pack()


def contexts(width: int) -> st.SearchStrategy[GuestContext]:
    word = st.integers(0, (1 << width) - 1)
    frame = st.integers(0, (1 << width) - 1)
    callback = st.builds(CallbackEntry, word, st.just(True), U16 if width == 32 else st.just(0))
    entries = st.integers(0, 8192)

    def traps(seed: bytes) -> list[TrapInfo]:
        raw = random.Random(seed).randbytes(256 * TrapInfo.size(width))
        size = TrapInfo.size(width)
        return [TrapInfo.unpack(raw[at : at + size], width) for at in range(0, len(raw), size)]

    @st.composite
    def build(draw: st.DrawFn) -> GuestContext:
        flags = draw(st.integers(0, 0x3F)) | shared.VGCF_I387_VALID
        count = draw(entries)
        registers = Registers(rflags=draw(word), rip=draw(word), fpu=draw(FXSAVES))
        if (registers.fpu.fip | registers.fpu.fdp) >> 32:
            registers.fpu.fcs = registers.fpu.fds = 0
        for name in GENERAL_NAMES[: 16 if width == 64 else 8]:
            setattr(registers, name, draw(word))
        for name in SEGMENTS:
            setattr(registers, name, SegmentRegister(draw(U16)))
        if width == 64:
            registers.fs.base, registers.gs.base = draw(word), draw(word)
        failsafe, syscall = draw(callback), draw(word) if width == 64 else 0
        failsafe.mask_events = bool(flags & shared.VGCF_FAILSAFE_DISABLES_EVENTS)
        return GuestContext(
            width=width, flags=flags, registers=registers, upcall_masked=draw(st.booleans()),
            traps=traps(draw(st.binary(min_size=8, max_size=8))),
            ldt_base=draw(word), ldt_entries=draw(entries), gdt_entries=count,
            gdt_frames=tuple(draw(frame) for _ in range((count + 511) // 512)),
            kernel_ss=draw(U16), kernel_sp=draw(word), cr0=draw(word), cr4=draw(word), kernel_l4=draw(frame),
            user_l4=draw(frame) if width == 64 else 0, debug=[draw(word) for _ in range(8)],
            event=draw(callback), failsafe=failsafe,
            syscall=CallbackEntry(syscall, bool(flags & shared.VGCF_SYSCALL_DISABLES_EVENTS)),
            vm_assist=draw(word), gs_base_user=draw(word) if width == 64 else 0,
        )  # fmt: skip

    return build()


def seen(context: GuestContext) -> list[Any]:
    """Its fields, structures as what they hold."""
    values = {field.name: getattr(context, field.name) for field in fields(context)}
    values["traps"] = [trap.pack(context.width) for trap in context.traps]
    return list(values.items())


@pytest.mark.parametrize("width", [64, 32])
@settings(max_examples=30)
@given(data=st.data())
def test_a_context_is_what_it_was(width: int, data: st.DataObject) -> None:
    context = data.draw(contexts(width))
    raw = context.pack()
    assert len(raw) == shared.CONTEXT_LAYOUT[width].size
    again = GuestContext.unpack(raw, width)
    assert seen(again) == seen(context)
    assert again.pack() == raw
