# SPDX-License-Identifier: GPL-2.0-only
"""What the hypervisor relies on, tried out before the first guest runs: a tiny guest on a throwaway engine.

`probe.py` proves where the emulator keeps its state; this module proves that it behaves. Each check runs a
few bytes of code in ring 3 or ring 1 and compares the exit with what the processor manuals say (Intel SDM
volume 3, chapters 4 to 6) or, for SYSCALL and the stop, with what `engine.py` was written for. It takes
10 ms and is done once per process; `tests/test_engine.py` checks far more. Nothing here is known of Xen.
"""

import functools
from typing import Final

from pyhv.abi.x86 import FLAT_RING3_CS64, FLAT_RING3_DS, PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.cpu import vmcb as v
from pyhv.cpu.engine import Engine
from pyhv.cpu.probe import REMEDY
from pyhv.cpu.ram import Ram
from pyhv.errors import EngineError, GuestCrash

# Frames of the machine, each at the virtual address that equals its machine address.
_FRAMES: Final = 16
_HOLE, _L4, _L3, _L2, _L1 = range(1, 6)
_CODE, _DATA, _SUPERVISOR, _READ_ONLY, _NO_EXECUTE = range(6, 11)
_LANDING: Final = _CODE << 12 | 0xF00

_CODE_FLAGS: Final = 0x00AF_FB00
_DATA_FLAGS: Final = 0x00CF_F300
_LIMIT: Final = 0xFFFF_FFFF
_ROUNDS: Final = 3000

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
        kind = "interrupt" if vmcb.is_software_interrupt else "exception"
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
        vmcb.rip = _LANDING

    def sysenter(self, length: int) -> None:
        self._note("sysenter", length)

    def cpuid(self) -> bool:
        self.engine.vmcb.q[v.RAX] = 0x1234
        return True

    def port_read(self, _port: int, _size: int) -> int | None:
        self.engine.stop()  # in the middle of a block: it must not be felt before the block's end
        return 0

    def port_write(self, _port: int, _size: int, _value: int) -> bool:
        return False

    def port_fault(self) -> None:
        self._note("port fault", self.engine.vmcb.q[v.RAX])


class _Bench:
    """The throwaway engine with its page tables."""

    def __init__(self) -> None:
        self.ram = Ram(_FRAMES)
        self.sink = _Recorder()
        self.engine = self.sink.engine = Engine(self.ram, self.sink, count_blocks=True, hole=_HOLE << 12)
        self._next = _CODE << 12
        q = self.ram.q
        upper = PTE_P | PTE_RW | PTE_US | PTE_A
        q[_L4 << 9], q[_L3 << 9], q[_L2 << 9] = (mfn << 12 | upper for mfn in (_L3, _L2, _L1))
        for mfn in range(_FRAMES):
            q[_L1 << 9 | mfn] = mfn << 12 | upper | PTE_D
        q[_L1 << 9 | _SUPERVISOR] &= ~PTE_US
        q[_L1 << 9 | _READ_ONLY] &= ~PTE_RW
        q[_L1 << 9 | _NO_EXECUTE] |= PTE_NX
        self.ram.raw[_LANDING : _LANDING + 2] = b"\x0f\x0b"
        vmcb = self.engine.vmcb
        vmcb.q[v.CR + 3] = _L4 << 12
        vmcb.set_segment(v.CS, FLAT_RING3_CS64, 0, _LIMIT, _CODE_FLAGS)
        vmcb.set_segment(v.SS, FLAT_RING3_DS, 0, _LIMIT, _DATA_FLAGS)
        vmcb.set_rflags(0x202)
        assert self.engine.budget is not None
        self.budget = self.engine.budget.left

    def run(self, code: bytes, cpl: int = 3) -> tuple[int, Event | None]:
        """Run `code`, with RBX at the data page, until its first exit; (address of the code, exit)."""
        at = self._next
        self._next += len(code) + 15 & ~15
        self.ram.raw[at : at + len(code)] = code
        vmcb = self.engine.vmcb
        vmcb.d[v.HFLAGS] = v.HF_BASE64 | cpl
        vmcb.rip, vmcb.rsp = at, (_DATA << 12) + 0x800
        vmcb.q[v.RBX] = _DATA << 12
        return at, self.go()

    def go(self) -> Event | None:
        """Go on from where the engine stands."""
        self.sink.events.clear()
        self.budget[0] = 1 << 40
        self.engine.run()
        return self.sink.events[-1] if self.sink.events else None


def _expect(promise: str, held: bool) -> None:
    if not held:
        raise EngineError(f"The emulator breaks a rule that pyhv builds on ({promise}). {REMEDY}")


def _faults(bench: _Bench) -> None:
    """Page faults have the right error code, also in a row; privileged instructions fault outside ring 0."""
    for code, cpl, error, promise in (
        (b"\x48\x8b\x04\x25\x00\x80\x00\x00", 3, 5, "ring 3 may not read a supervisor page"),
        (b"\x48\x89\x04\x25\x00\x90\x00\x00", 3, 7, "ring 3 may not write a read-only page"),
        (b"\x48\x89\x04\x25\x00\x90\x00\x00", 1, 3, "ring 1 may not write a read-only page"),
    ):
        at, event = bench.run(code, cpl)
        _expect(promise, event == ("exception", at, 14 << 16 | error))
    _expect("CR2 is the address of the fault", bench.engine.vmcb.cr2 == _READ_ONLY << 12)
    at, event = bench.run(b"\x48\x8b\x04\x25\x00\x80\x00\x00\x0f\x0b", 1)
    _expect("ring 1 reads a supervisor page", event == ("invalid opcode", at + 8, 0))
    at, event = bench.run(b"\xb8\x00\xa0\x00\x00\xff\xe0")  # mov eax, no-execute page; jmp rax
    _expect("NX is honoured", event == ("exception", _NO_EXECUTE << 12, 14 << 16 | 0x15))
    entry, store = _L1 << 9 | _DATA, b"\x48\x89\x03\x0f\x0b"  # mov [rbx], rax; ud2
    bench.run(store)
    bench.ram.q[entry] &= ~PTE_RW
    bench.engine.flush_page(_DATA << 12)
    at, event = bench.run(store)
    _expect("a flushed page's entry is read again", event == ("exception", at, 14 << 16 | 7))
    bench.ram.q[entry] |= PTE_RW
    bench.engine.flush_tlb()
    for cpl in (3, 1):
        for code, name in ((b"\xfa", "CLI"), (b"\x0f\x31", "RDTSC"), (b"\x0f\x20\xc0", "MOV from CR0")):
            at, event = bench.run(code, cpl)
            _expect(f"{name} faults in ring {cpl}", event == ("exception", at, 13 << 16))
    at, event = bench.run(b"\xcd\x21")
    _expect(
        "INT n leaves RIP behind the instruction",
        event is not None and event[:2] == ("interrupt", at + 2) and event[2] >> 16 == 0x21,
    )


def _calls(bench: _Bench) -> None:
    """SYSCALL and its RIP; CPUID is answered by the sink; a refused port has no side effects."""
    at, event = bench.run(b"\x90\x0f\x05")
    _expect("SYSCALL is seen at its address", event == ("syscall", at + 1, 2))
    _expect("SYSCALL goes on where it was told", bench.go() == ("invalid opcode", _LANDING, 0))
    bench.run(b"\x31\xc0\x0f\xa2\x0f\x0b")  # xor eax, eax; cpuid; ud2
    _expect("CPUID is answered by pyhv", bench.engine.vmcb.q[v.RAX] == 0x1234)
    bench.ram.q[_DATA << 9] = 7
    # mov eax, 5; out 0x80, al; mov [rbx], rax; mov eax, 6; syscall
    at, event = bench.run(b"\xb8\x05\x00\x00\x00\xe6\x80\x48\x89\x03\xb8\x06\x00\x00\x00\x0f\x05")
    _expect(
        "a refused OUT has no side effects",
        event == ("port fault", at + 5, 5) and bench.ram.q[_DATA << 9] == 7,
    )


def _flags(bench: _Bench) -> None:
    """Flags go in and come out, whether they were computed or set."""
    engine = bench.engine
    bench.run(b"\xfd\x31\xc0\x83\xe8\x01\x0f\x0b")  # std; xor eax, eax; sub eax, 1; ud2
    _expect("flags are read", engine.rflags() == 0x202 | 0x400 | 0x80 | 0x10 | 0x4 | 0x1)
    for wanted in (0x202 | 0x8D5, 0x202):
        bench.sink.flags_in_syscall = wanted
        # xor eax, eax; sub eax, 1; syscall; lahf; mov [rbx + 8], ah; pushfq; pop [rbx]; ud2
        bench.run(b"\x31\xc0\x83\xe8\x01\x0f\x05\x9f\x88\x63\x08\x9c\x8f\x03\x0f\x0b")
        low_byte = bench.ram.raw[(_DATA << 12) + 8]
        _expect("flags are set", bench.ram.q[_DATA << 9] == wanted and low_byte == wanted & 0xFF)


def _stops(bench: _Bench) -> None:
    """Stopping executes nothing twice: neither when the byte budget is spent nor when asked at any moment."""
    engine, q, data = bench.engine, bench.ram.q, _DATA << 9
    q[data] = 0
    # mov ecx, rounds; 1: lock inc qword [rbx]; dec ecx; jnz 1b; ud2
    loop = b"\xb9" + _ROUNDS.to_bytes(4, "little") + b"\xf0\x48\xff\x03\xff\xc9\x75\xf8\x0f\x0b"
    stopped = 0
    bench.run(b"\x0f\x0b")
    at, event = bench.run(b"\x0f\x0b" + loop)
    engine.vmcb.rip = at + 2
    bench.sink.events.clear()
    while not bench.sink.events:
        bench.budget[0] = 40
        engine.run()
        stopped += 1
    _expect("a spent budget stops between blocks", q[data] == _ROUNDS and stopped > _ROUNDS // 8)
    if not engine.async_stop_safe:
        return
    q[data] = 0
    # xor ecx, ecx; in al, 0x80 (which asks for a stop); lock inc qword [rbx]; inc ecx; jmp 1f; 1: ud2
    at, event = bench.run(b"\x31\xc9\xe4\x80\xf0\x48\xff\x03\xff\xc1\xeb\x00\x0f\x0b")
    stopped_at = engine.vmcb.rip
    done = event is None and stopped_at == at + 12 and q[data] == 1 and engine.vmcb.q[v.RCX] == 1
    _expect("a stop from outside waits for the end of the block", done)
    _expect("a stopped guest goes on", bench.go() == ("invalid opcode", at + 12, 0) and q[data] == 1)


@functools.cache
def self_test() -> None:
    """Check the crucial behaviour of the installed emulator, once per process.

    EngineError with what is wrong and what to install if it is not the emulator that pyhv knows.
    """
    bench = _Bench()
    try:
        for check in (_faults, _calls, _flags, _stops):
            check(bench)
    except GuestCrash as crash:
        raise EngineError(f"The emulator gave up in pyhv's self-test: {crash.why}. {REMEDY}") from crash
    finally:
        bench.engine.close()
