# SPDX-License-Identifier: GPL-2.0-only
"""An engine without a hypervisor: page tables written by hand, a sink that notes exits, code in assembly."""

from collections.abc import Callable
from dataclasses import dataclass

from pyhv.abi.x86 import FLAT_RING3_CS64, FLAT_RING3_DS, PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble
from pyhv.cpu.engine import Engine
from pyhv.cpu.ram import Ram
from pyhv.cpu.tuning.gate import tuning

HOLE, L4, L3, L2, L1 = range(1, 6)
CODE, CODE_2, DATA, SUPERVISOR, READ_ONLY, NO_EXECUTE, ABSENT, ALIAS = range(16, 24)
"""Frames; each is mapped at the address that equals its machine address, ALIAS maps CODE once more."""
TUNED = True
"""Whether engines are tuned that are not told; `both_engines` in conftest.py runs tests with either."""
USER = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D


def at(frame: int, offset: int = 0) -> int:
    """Address of a frame."""
    return frame << 12 | offset


@dataclass(frozen=True)
class Exit:
    """One exit: `vector` of exceptions, -1 otherwise; `detail` is a port or a SYSCALL's length."""

    kind: str
    rip: int
    vector: int = -1
    error: int = 0
    detail: int = 0


class Recorder:
    """An `ExitSink` that notes everything; after most exits it stops the engine."""

    def __init__(self) -> None:
        self.exits: list[Exit] = []
        self.engine: Engine
        self.ports: dict[int, int] = {}
        """Ports that may be used, and what reading them gives."""
        self.written: list[tuple[int, int, int]] = []
        self.answer: Callable[[], None] = lambda: None
        self.handle: Callable[[Exit], bool] = lambda _exit: False
        """Says whether the exit was dealt with, so that the engine need not stop."""

    def _note(self, seen: Exit) -> None:
        self.exits.append(seen)
        if not self.handle(seen):
            self.engine.stop()

    def exception(self, vector: int) -> None:
        vmcb = self.engine.vmcb
        kind = "interrupt" if vmcb.software_interrupt else "exception"
        self._note(Exit(kind, vmcb.rip, vector, vmcb.error_code))

    def invalid_opcode(self) -> None:
        self._note(Exit("invalid", self.engine.vmcb.rip))

    def syscall(self, length: int) -> None:
        rip = self.engine.vmcb.rip
        self.engine.vmcb.rip = rip + length
        self._note(Exit("syscall", rip, detail=length))

    def sysenter(self, length: int) -> None:
        rip = self.engine.vmcb.rip
        self.engine.vmcb.rip = rip + length
        self._note(Exit("sysenter", rip, detail=length))

    def cpuid(self) -> bool:
        self.exits.append(Exit("cpuid", self.engine.vmcb.rip))
        self.answer()
        return True

    def clock_read(self, aux: bool) -> None:
        self.exits.append(Exit("rdtscp" if aux else "rdtsc", self.engine.vmcb.rip))
        self.answer()

    def port_read(self, port: int, size: int) -> int | None:
        self.exits.append(Exit("in", self.engine.vmcb.rip, detail=port))
        value = self.ports.get(port)
        return None if value is None else value & (1 << 8 * size) - 1

    def port_write(self, port: int, size: int, value: int) -> bool:
        self.exits.append(Exit("out", self.engine.vmcb.rip, detail=port))
        self.written.append((port, size, value))
        return port in self.ports

    def port_fault(self) -> None:
        self._note(Exit("port fault", self.engine.vmcb.rip))


class Bare:
    """RAM, page tables, an engine and its recorder."""

    def __init__(
        self,
        *,
        count_blocks: bool = False,
        native: bool = True,
        ram: Ram | None = None,
        sink: Recorder | None = None,
        tuned: bool | None = None,
    ) -> None:
        self.ram = ram or Ram(64)
        self.sink = sink or Recorder()
        self.engine = Engine(
            self.ram, self.sink, count_blocks=count_blocks, hole=at(HOLE), native=native,
            tuning=tuning() if (TUNED if tuned is None else tuned) else None,
        )  # fmt: skip
        self.sink.engine = self.engine
        self.vmcb, self.q = self.engine.vmcb, self.engine.vmcb.q
        q = self.ram.writable.q
        upper = PTE_P | PTE_RW | PTE_US | PTE_A
        q[L4 << 9], q[L3 << 9], q[L2 << 9] = at(L3) | upper, at(L2) | upper, at(L1) | upper
        for frame in range(64):
            q[L1 << 9 | frame] = at(frame) | USER
        q[L1 << 9 | SUPERVISOR] &= ~PTE_US
        q[L1 << 9 | READ_ONLY] &= ~PTE_RW
        q[L1 << 9 | NO_EXECUTE] |= PTE_NX
        q[L1 << 9 | DATA] |= PTE_NX
        q[L1 << 9 | ABSENT] = 0
        q[L1 << 9 | ALIAS] = at(CODE) | USER
        self.q[v.CR + 3] = at(L4)
        self.vmcb.set_segment(v.CS, FLAT_RING3_CS64, 0, 0xFFFF_FFFF, 0x00AF_FB00)
        self.vmcb.set_segment(v.SS, FLAT_RING3_DS, 0, 0xFFFF_FFFF, 0x00CF_F300)
        self.vmcb.set_rflags(0x202)
        self.ring(3)
        if self.engine.budget is not None:
            self.engine.budget.left[0] = 1 << 40

    def ring(self, cpl: int) -> None:
        """Set the privilege level."""
        self.vmcb.d[v.HFLAGS] = v.HF_BASE64 | cpl

    def write(self, code: str | bytes, address: int = CODE << 12) -> bytes:
        """Put code into memory."""
        raw = code if isinstance(code, bytes) else assemble(code.replace(";", "\n"), address)
        self.ram.writable.raw[address : address + len(raw)] = raw
        return raw

    def run(self, code: str | bytes, address: int = CODE << 12) -> Exit:
        """Run code, RBX at the data page, RSP in its middle; the last exit."""
        self.write(code, address)
        self.engine.invalidate_code(address >> 12)
        self.q[v.RIP], self.q[v.RBX], self.q[v.RSP] = address, at(DATA), at(DATA, 0x800)
        return self.go()

    def go(self) -> Exit:
        """Run on from where the processor stands, until an exit."""
        self.sink.exits.clear()
        self.engine.run()
        return self.sink.exits[-1]

    def data(self, index: int = 0) -> int:
        """A word of the data page."""
        return self.ram.q[DATA << 9 | index]

    def set_data(self, value: int, index: int = 0) -> None:
        """Write a word of the data page."""
        self.ram.writable.q[DATA << 9 | index] = value

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()
