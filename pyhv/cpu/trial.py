# SPDX-License-Identifier: GPL-2.0-only
"""A tiny guest on a throwaway engine: what the proofs at start-up run their code on.

Sixty-four frames of RAM, page tables written by hand, a sink that notes one exit and stops. Who asks what of
it: `selftest.py` for the emulator as it is, `tuning/` for what pyhv changes in it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from pyhv.abi.x86 import FLAT_RING3_CS64, FLAT_RING3_DS, PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.cpu import vmcb as v
from pyhv.cpu.changed import EngineTuning
from pyhv.cpu.engine import Engine
from pyhv.cpu.ram import Ram

FRAMES: Final = 64
HOLE, L4, L3, L2, L1 = range(1, 6)
CODE, DATA, SUPERVISOR, READ_ONLY, NO_EXECUTE = range(6, 11)
"""Frames, each at the virtual address that equals its machine address."""
_FIRST_FREE: Final = 16
LANDING: Final = CODE << 12 | 0xF00
"""Where a SYSCALL goes on: at an undefined instruction."""
UPPER: Final = PTE_P | PTE_RW | PTE_US | PTE_A
LEAF: Final = UPPER | PTE_D

AUX: Final = 0x9ABC
"""What RDTSCP gives in RCX."""

_CODE_FLAGS: Final = 0x00AF_FB00
_DATA_FLAGS: Final = 0x00CF_F300
_LIMIT: Final = 0xFFFF_FFFF

Event = tuple[str, int, int]
"""(what, RIP, detail): detail is a vector, an error code or a register, as the check wants it."""


class _Recorder:
    """An exit sink that notes one exit, stops the engine and lets every port be used."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.engine: Engine
        self.flags_in_syscall: int | None = None
        """If given, SYSCALL sets the flags to this and the guest goes on."""

    def _note(self, what: str, detail: int) -> None:
        self.events.append((what, self.engine.vmcb.rip, detail))
        self.engine.stop()

    def exception(self, vector: int) -> None:
        vmcb = self.engine.vmcb
        kind = "interrupt" if vmcb.software_interrupt else "exception"
        self._note(kind, vector << 16 | vmcb.error_code & 0xFFFF)

    def invalid_opcode(self) -> None:
        self._note("invalid opcode", 0)

    def syscall(self, length: int) -> None:
        vmcb = self.engine.vmcb
        if self.flags_in_syscall is not None:
            vmcb.rip += length
            vmcb.set_rflags(self.flags_in_syscall)
            return
        self._note("syscall", length)
        vmcb.rip = LANDING

    def sysenter(self, length: int) -> None:
        self._note("sysenter", length)

    def cpuid(self) -> bool:
        self.engine.vmcb.q[v.RAX] = 0x1234
        return True

    def clock_read(self, aux: bool) -> None:
        q = self.engine.vmcb.q
        q[v.RAX], q[v.RDX] = q[v.RIP], 0
        if aux:
            q[v.RCX] = AUX

    def port_read(self, _port: int, _size: int) -> int | None:
        self.engine.stop()  # in the middle of a block: it must not be felt before the block's end
        return 0

    def port_write(self, _port: int, _size: int, _value: int) -> bool:
        return False

    def port_fault(self) -> None:
        self._note("port fault", self.engine.vmcb.q[v.RAX])


class BrokenPromise(Exception):
    """The emulator does not do what it must; `promise` says what that was."""

    def __init__(self, promise: str) -> None:
        super().__init__(promise)
        self.promise = promise


class Trial:
    """The throwaway engine with its page tables. Close it: it is a context manager.

    Not `screened`: its code has none of the instructions that are refused.
    """

    def __init__(self, tuning: EngineTuning | None = None, *, screened: bool = True) -> None:
        self.ram = Ram(FRAMES)
        self.sink = _Recorder()
        self.engine = self.sink.engine = Engine(
            self.ram, self.sink, count_blocks=True, hole=HOLE << 12, tuning=tuning, screened=screened
        )  # fmt: skip
        self._next = CODE << 12
        self._free = _FIRST_FREE
        q = self.ram.writable.q
        q[L4 << 9], q[L3 << 9], q[L2 << 9] = (mfn << 12 | UPPER for mfn in (L3, L2, L1))
        for mfn in range(FRAMES):
            q[L1 << 9 | mfn] = mfn << 12 | LEAF
        q[L1 << 9 | SUPERVISOR] &= ~PTE_US
        q[L1 << 9 | READ_ONLY] &= ~PTE_RW
        q[L1 << 9 | NO_EXECUTE] |= PTE_NX
        self.ram.writable.raw[LANDING : LANDING + 2] = b"\x0f\x0b"
        vmcb = self.engine.vmcb
        vmcb.q[v.CR + 3] = L4 << 12
        vmcb.set_segment(v.CS, FLAT_RING3_CS64, 0, _LIMIT, _CODE_FLAGS)
        vmcb.set_segment(v.SS, FLAT_RING3_DS, 0, _LIMIT, _DATA_FLAGS)
        vmcb.set_rflags(0x202)
        assert self.engine.budget is not None
        self.budget = self.engine.budget.left
        self._as_new = bytes(vmcb.raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    def reset(self) -> None:
        """For the next proof: the processor is as it was at first and has nothing cached; memory stays."""
        self.engine.vmcb.raw[:] = self._as_new
        self.sink.flags_in_syscall = None
        self.engine.flush_tlb()

    def take_frame(self) -> int:
        """A frame, and page, that nothing else of this trial uses."""
        self._free += 1
        return self._free - 1

    def map(self, page: int, mfn: int, flags: int = LEAF) -> None:
        """Let a page of the first 2 MiB lead to a frame; the caller flushes."""
        self.ram.writable.q[L1 << 9 | page] = mfn << 12 | flags

    def run(self, code: bytes, cpl: int = 3) -> tuple[int, Event | None]:
        """Run `code`, with RBX at the data page, until its first exit; (address of the code, exit)."""
        at = self._next
        self._next += len(code) + 15 & ~15
        assert self._next <= LANDING
        self.ram.writable.raw[at : at + len(code)] = code
        self.enter(at, cpl)
        return at, self.go()

    def enter(self, at: int, cpl: int = 3) -> None:
        """Let the processor stand at an address, with RBX at the data page and a stack."""
        vmcb = self.engine.vmcb
        vmcb.d[v.HFLAGS] = v.HF_BASE64 | cpl
        vmcb.rip, vmcb.rsp = at, (DATA << 12) + 0x800
        vmcb.q[v.RBX] = DATA << 12

    def go(self, budget: int = 1 << 40) -> Event | None:
        """Go on from where the engine stands, for so many bytes of code."""
        self.sink.events.clear()
        self.budget[0] = budget
        self.engine.run()
        return self.sink.events[-1] if self.sink.events else None

    @staticmethod
    def expect(promise: str, held: bool) -> None:
        """BrokenPromise if it was not held."""
        if not held:
            raise BrokenPromise(promise)
