# SPDX-License-Identifier: GPL-2.0-only
"""Target `smc`: programs that overwrite code, their own and that of small functions, through every mapping.

An input is a program. It is assembled here, together with what it should compute, and run by engines with
and without the tuning, as 64- or as 32-bit code, on either clock:

    functions    mov eax, NUMBER; ret - some hundred in two frames, one across the boundary between them
    aliases      the two frames are mapped three times: executable and writable twice, once without execution
    a third      frame has functions at the same places, and takes turns with the first
    steps        call a function through an executable mapping; store into the number of one, or beside it, in
                 any width, by any kind of instruction, through any mapping; overwrite the number in an
                 instruction a little further on in the program itself; an interrupt, in which the hypervisor
                 flushes, writes, drops translations, remaps, or lets an alias be executed or not

All numbers that the functions and instructions gave are mixed into EBP, and memory is compared at the end.
"""

import struct
from collections.abc import Callable
from typing import Final

from fuzz.source import Source
from fuzz.target import Finding, Target, arm
from pyhv.abi.x86 import (
    COMPAT_RING3_CS,
    COMPAT_RING3_DS,
    FLAT_RING3_CS64,
    FLAT_RING3_DS,
    PTE_A,
    PTE_D,
    PTE_NX,
    PTE_P,
    PTE_RW,
    PTE_US,
)
from pyhv.address import MASK32
from pyhv.cpu import vmcb as v
from pyhv.cpu.engine import Engine
from pyhv.cpu.ram import Ram
from pyhv.cpu.tuning.gate import tuning

FRAMES: Final = 64
HOLE, L4, L3, L2, L1, DATA = range(1, 7)
FIRST, SECOND, THIRD = 8, 9, 10
"""Frames of functions."""
PROGRAM, PROGRAM_PAGES = 16, 8
PROGRAM_ALIAS = 32
"""The program's frames once more, without execution."""
ALIASES = (40, 42, 44)
"""Pages where the first two frames are mapped; the last of them is not executable at first."""
SLOT = 32
"""Bytes from one function to the next; each begins some bytes later, so that they are at all alignments."""
ACROSS = 0x1000 - 3
"""Place of the function that begins in the first frame and ends in the second."""
SLICE = 400
"""Bytes of code between two stops of an engine that counts them."""
_UPPER = PTE_P | PTE_RW | PTE_US | PTE_A
_LEAF = _UPPER | PTE_D
_MIX = b"\xc1\xc5\x05\x31\xc5"
"""rol ebp, 5; xor ebp, eax."""
_HYPERCALL, _END = b"\xcd\x82", b"\x0f\x0b"


def _place(number: int) -> int:
    """Where a function begins, in the two frames laid end to end."""
    return ACROSS if number % 128 == 0 else number % 128 * SLOT + number % 7 + (number >> 7 & 1) * 0x1000


class Stage:
    """RAM, page tables and an engine, and the sink of its exits."""

    def __init__(self, *, tuned: bool, count_blocks: bool, wide: bool, watched: bool = True) -> None:
        self.ram = Ram(FRAMES)
        self.acts: list[Callable[[Stage], None]] = []
        """What the hypervisor does at each interrupt of the program."""
        self.end = ""
        q = self.ram.writable.q
        q[L4 << 9], q[L3 << 9], q[L2 << 9] = (mfn << 12 | _UPPER for mfn in (L3, L2, L1))
        for page in range(FRAMES):
            q[L1 << 9 | page] = page << 12 | _LEAF
        for page in range(PROGRAM_PAGES):
            q[L1 << 9 | PROGRAM_ALIAS + page] = PROGRAM + page << 12 | _LEAF | PTE_NX
        for alias in ALIASES:
            no_execute = PTE_NX if alias == ALIASES[-1] else 0
            for page, mfn in enumerate((FIRST, SECOND)):
                q[L1 << 9 | alias + page] = mfn << 12 | _LEAF | no_execute
        q[L1 << 9 | DATA] |= PTE_NX
        self.engine = engine = Engine(
            self.ram, self, count_blocks=count_blocks, hole=HOLE << 12, tuning=tuning() if tuned else None
        )  # fmt: skip
        if engine.watch is not None and watched:
            engine.watch.add((FIRST, THIRD))
            engine.watch.add((PROGRAM, PROGRAM + PROGRAM_PAGES - 1))
        vmcb = engine.vmcb
        vmcb.q[v.CR + 3] = L4 << 12
        code, data = (FLAT_RING3_CS64, FLAT_RING3_DS) if wide else (COMPAT_RING3_CS, COMPAT_RING3_DS)
        vmcb.set_segment(v.CS, code, 0, MASK32, 0x00AF_FB00 if wide else 0x00CF_FB00)
        for segment in (v.SS, v.DS, v.ES):
            vmcb.set_segment(segment, data, 0, MASK32, 0x00CF_F300)
        vmcb.set_rflags(0x202)
        vmcb.d[v.HFLAGS] = (v.HF_BASE64 if wide else v.HF_BASE64 & ~v.HF_CS64) | 3
        vmcb.rip, vmcb.rsp, vmcb.q[v.RBP] = PROGRAM << 12, DATA << 12 | 0xF00, 0

    def run(self) -> None:
        """Run to the program's end, or to an exit that it should not have."""
        budget = self.engine.budget
        while not self.end:
            arm()
            if budget is not None:
                budget.left[0] = SLICE
            self.engine.run()

    def _stop(self, why: str) -> None:
        self.end = why
        self.engine.stop()

    def exception(self, vector: int) -> None:
        """The hypervisor's next act, or a fault."""
        vmcb = self.engine.vmcb
        if vector != 0x82 or not vmcb.software_interrupt or not self.acts:
            self._stop(f"exception {vector} at {vmcb.rip:#x}, CR2 {vmcb.cr2:#x}")
            return
        self.acts.pop(0)(self)

    def invalid_opcode(self) -> None:
        """The end of the program."""
        self._stop("end")

    def syscall(self, _length: int) -> None:
        """No program has one."""
        self._stop("SYSCALL")

    sysenter = syscall

    def cpuid(self) -> bool:
        """No program has one."""
        self._stop("CPUID")
        return True

    def clock_read(self, _aux: bool) -> None:
        """No program has an RDTSC."""
        self._stop("RDTSC")

    def port_read(self, port: int, _size: int) -> int | None:
        """No program has one."""
        self._stop(f"IN from {port:#x}")
        return 0

    def port_write(self, port: int, _size: int, _value: int) -> bool:
        """No program has one."""
        self._stop(f"OUT to {port:#x}")
        return True

    def port_fault(self) -> None:
        """No port is refused."""


class Program:
    """A program in the making: its code, the acts of the hypervisor, and what both should lead to."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.code = bytearray()
        self.acts: list[Callable[[Stage], None]] = []
        self.hash = 0
        self.stores = 0
        self.executable = list(ALIASES[:2])
        self.third = dict.fromkeys(ALIASES, False)
        """Aliases whose first page shows the third frame in the place of the first."""
        self.memory = {mfn: bytearray(0x1000) for mfn in (FIRST, SECOND, THIRD)}
        for alias in (ALIASES[0], ALIASES[1]):
            self.third[ALIASES[0]] = alias == ALIASES[1]  # once with each frame in the first place
            for number in range(256):
                at = _place(number)
                for offset, byte in enumerate(b"\xb8" + struct.pack("<I", number * 0x01010101) + b"\xc3"):
                    self._poke(ALIASES[0], at + offset, byte)
        self.third[ALIASES[0]] = False
        self.start = {mfn: bytes(data) for mfn, data in self.memory.items()}
        self.constants = bytearray()

    def _frame(self, alias: int, at: int) -> tuple[int, int]:
        """The frame and offset behind a place of an alias."""
        first = THIRD if self.third[alias] else FIRST
        return (first if at < 0x1000 else SECOND), at & 0xFFF

    def _poke(self, alias: int, at: int, byte: int) -> None:
        mfn, offset = self._frame(alias, at)
        self.memory[mfn][offset] = byte

    def _peek(self, alias: int, at: int, length: int) -> bytes:
        return bytes(
            self.memory[mfn][offset] for mfn, offset in (self._frame(alias, at + n) for n in range(length))
        )

    def _mix(self, value: int) -> None:
        self.hash = ((self.hash << 5 | self.hash >> 27) & MASK32) ^ value

    # -- steps -------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One more step."""
        how = self.source.u8()
        if how < 100:
            self.call()
        elif how < 200:
            self.store()
        elif how < 225:
            self.overwrite_ahead()
        else:
            self.interrupt()

    def _function(self) -> int:
        """Few are used often."""
        number = self.source.u8()
        return _place(number & 3 if number < 200 else number)

    def call(self) -> None:
        """Call a function through a mapping that allows it."""
        alias, at = self.source.pick(self.executable), self._function()
        self.code += b"\xb9" + struct.pack("<I", (alias << 12) + at) + b"\xff\xd1" + _MIX  # mov ecx, at; call
        self._mix(struct.unpack("<I", self._peek(alias, at + 1, 4))[0])

    def store(self) -> None:
        """Store so that opcodes stay as they are, and numbers and what lies between functions change."""
        source, alias = self.source, self.source.pick(ALIASES)
        at = self._function() + 1 + source.below(4) - (4 if source.chance(60) else 0)
        kind = source.below(len(_STORES))
        size, head = _STORES[kind]
        at = min(at, 0x2000 - size)
        old = self._peek(alias, at, size)
        new = bytes(byte if at + n in _OPCODES else source.u8() for n, byte in enumerate(old))
        self.stores += 1
        place = struct.pack("<I", (alias << 12) + at)
        if size > 4:
            constant = struct.pack("<I", (DATA << 12) + len(self.constants))
            self.constants += new
            self.code += b"\xba" + place + b"\xbe" + constant + b"\xbf" + place + head  # mov edx, esi, edi
        else:
            value = int.from_bytes(new, "little")
            if kind in _ADDITIONS:
                value = value - int.from_bytes(old, "little") & (1 << 8 * size) - 1
            self.code += b"\xba" + place + b"\xb8" + struct.pack("<I", value) + head  # mov edx; mov eax
        for n, byte in enumerate(new):
            self._poke(alias, at + n, byte)

    def overwrite_ahead(self) -> None:
        """Change the number of an instruction of this very program that comes some bytes later."""
        source = self.source
        page = source.pick((PROGRAM, PROGRAM_ALIAS))
        between = b"\x90" * source.below(24) + (b"\xeb\x00" if source.chance(128) else b"")
        value = source.u8()
        at = len(self.code) + 5 + 3 + len(between) + 1  # mov edx, at; mov byte [edx], value; ...; mov eax, 0
        self.code += b"\xba" + struct.pack("<I", (page << 12) + at) + b"\xc6\x02" + bytes([value]) + between
        self.code += b"\xb8\x00\x00\x00\x00" + _MIX
        self._mix(value)
        self.stores += 1

    def interrupt(self) -> None:
        """Let the hypervisor do something."""
        source = self.source
        self.code += _HYPERCALL
        how, alias = source.below(7), source.pick(ALIASES)
        if how == 0:
            self.acts.append(lambda stage: stage.engine.flush_tlb())
        elif how == 1:
            page = alias + source.below(2)
            self.acts.append(lambda stage: stage.engine.flush_page(page << 12))
        elif how == 2:
            mfn = source.pick((FIRST, SECOND))
            self.acts.append(lambda stage: stage.engine.invalidate_code(mfn))
        elif how == 3:
            self._hypervisor_writes(alias)
        elif how == 4:
            self._remap(alias)
        elif how == 5:
            self._change_execute()
        else:
            self.acts.append(_lay_out)

    def _hypervisor_writes(self, alias: int) -> None:
        at, value = self._function() + 1, self.source.u8()
        mfn, offset = self._frame(alias, at)
        self._poke(alias, at, value)

        def act(stage: Stage) -> None:
            stage.ram.writable.raw[mfn << 12 | offset] = value
            stage.engine.invalidate_code(mfn)

        self.acts.append(act)

    def _remap(self, alias: int) -> None:
        """The first page of an alias shows the other frame."""
        self.third[alias] = not self.third[alias]
        mfn, page = (THIRD if self.third[alias] else FIRST), alias

        def act(stage: Stage) -> None:
            entry = stage.ram.q[L1 << 9 | page]
            stage.ram.writable.q[L1 << 9 | page] = entry & PTE_NX | mfn << 12 | _LEAF
            stage.engine.flush_tlb()

        self.acts.append(act)

    def _change_execute(self) -> None:
        """The last alias may be executed from now on, or no longer."""
        alias = ALIASES[-1]
        if alias in self.executable:
            self.executable.remove(alias)
        else:
            self.executable.append(alias)

        def act(stage: Stage) -> None:
            for page in (alias, alias + 1):
                stage.ram.writable.q[L1 << 9 | page] ^= PTE_NX
            stage.engine.flush_tlb()

        self.acts.append(act)


_OPCODES = frozenset(_place(number) + offset for number in range(256) for offset in (0, 5))
"""Bytes of functions that no store changes."""
_STORES = (
    (1, b"\x88\x02"),  # mov [edx], al
    (2, b"\x66\x89\x02"),
    (4, b"\x89\x02"),
    (4, b"\x87\x02"),  # xchg
    (1, b"\x00\x02"),  # add
    (4, b"\x01\x02"),
    (4, b"\xf0\x01\x02"),  # lock add
    (8, b"\xf3\x0f\x7e\x06\x66\x0f\xd6\x02"),  # movq xmm0, [esi]; movq [edx], xmm0
    (16, b"\x0f\x10\x06\x0f\x11\x02"),  # movups
    (11, b"\xb9\x0b\x00\x00\x00\xf3\xa4"),  # mov ecx, 11; rep movsb
    (40, b"\xb9\x0a\x00\x00\x00\xf3\xa5"),  # mov ecx, 10; rep movsd
)
"""Size and instructions of each kind of store."""
_ADDITIONS = (4, 5, 6)


def _lay_out(stage: Stage) -> None:
    """As when runs of watched frames are laid out anew."""
    if stage.engine.watch is not None:
        stage.engine.watch.replace([(FIRST, THIRD), (PROGRAM, PROGRAM + PROGRAM_PAGES - 1)])
        stage.engine.flush_tlb()


class Smc(Target):
    """Runs each program on engines of both kinds."""

    name = "smc"
    unit = "stores"
    max_length = 1500
    watched = True
    """Whether frames are watched where the engine does not see all stores: else stale code is found."""

    def run(self, data: bytes) -> bytes:
        """Assemble the program of an input and run it."""
        source = Source(data)
        wide, count_blocks = source.chance(128), source.chance(128)
        program = Program(source)
        self.steps = [0]
        limit = PROGRAM_PAGES * 0x1000 - 100
        while source.more and len(program.code) < limit and len(program.constants) < 0xE00 - 40:
            program.step()
        program.code += _END
        for tuned in (False, True):
            self._perform(program, tuned=tuned, count_blocks=count_blocks, wide=wide)
        self.calls += program.stores
        return source.used()

    def _perform(self, program: Program, *, tuned: bool, count_blocks: bool, wide: bool) -> None:
        stage = Stage(tuned=tuned, count_blocks=count_blocks, wide=wide, watched=self.watched)
        try:
            stage.acts = list(program.acts)
            raw = stage.ram.writable.raw
            for mfn, content in program.start.items():
                raw[mfn << 12 : mfn + 1 << 12] = content
            raw[PROGRAM << 12 : (PROGRAM << 12) + len(program.code)] = program.code
            raw[DATA << 12 : (DATA << 12) + len(program.constants)] = program.constants
            stage.run()
            what = (
                f"{'tuned' if tuned else 'plain'}, {64 if wide else 32} bits, blocks counted: {count_blocks}"
            )
            if stage.end != "end":
                raise Finding("smc", f"{stage.end} ({what})")
            found = stage.engine.vmcb.q[v.RBP] & MASK32
            if found != program.hash:
                raise Finding("smc", f"old code ran: {found:#x} and not {program.hash:#x} ({what})")
            for mfn, wanted in program.memory.items():
                if raw[mfn << 12 : mfn + 1 << 12] != wanted:
                    raise Finding("smc", f"the stores to frame {mfn} went wrong ({what})")
        finally:
            stage.engine.close()

    def finish(self) -> None:
        """Nothing is kept from one program to the next."""

    def abandon(self) -> None:
        """Nothing is kept."""
