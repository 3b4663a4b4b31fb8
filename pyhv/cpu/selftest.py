# SPDX-License-Identifier: GPL-2.0-only
"""What the hypervisor relies on, tried out before the first guest runs: a tiny guest on a throwaway engine.

`probe.py` proves where the emulator keeps its state; this module proves that it behaves. Each check runs a
few bytes of code in ring 3 or ring 1 and compares the exit with what the processor manuals say (Intel SDM
volume 3, chapters 4 to 6) or, for SYSCALL and the stop, with what `engine.py` was written for. It takes 10 ms
and is done once per process for the engines that it uses: the tuned ones (`tuning/gate.py`), or those as the
library makes them. `tests/engine/test_engine.py` checks far more. Nothing here is known of Xen.
"""

from collections.abc import Callable, Mapping
from typing import Final

from pyhv.abi.x86 import PTE_NX, PTE_RW
from pyhv.cpu import vmcb as v
from pyhv.cpu.host import executable_memory_refused
from pyhv.cpu.once import once
from pyhv.cpu.probe import REMEDY
from pyhv.cpu.trial import AUX, CODE, DATA, L1, LANDING, LEAF, NO_EXECUTE, READ_ONLY, BrokenPromise, Trial
from pyhv.errors import EngineError, GuestCrash

_ROUNDS: Final = 3000


def _faults(trial: Trial) -> None:
    """Page faults have the right error code, also in a row; privileged instructions fault outside ring 0."""
    for code, cpl, error, promise in (
        (b"\x48\x8b\x04\x25\x00\x80\x00\x00", 3, 5, "ring 3 may not read a supervisor page"),
        (b"\x48\x89\x04\x25\x00\x90\x00\x00", 3, 7, "ring 3 may not write a read-only page"),
        (b"\x48\x89\x04\x25\x00\x90\x00\x00", 1, 3, "ring 1 may not write a read-only page"),
    ):
        at, event = trial.run(code, cpl)
        trial.expect(promise, event == ("exception", at, 14 << 16 | error))
    trial.expect("CR2 is the address of the fault", trial.engine.vmcb.cr2 == READ_ONLY << 12)
    at, event = trial.run(b"\x48\x8b\x04\x25\x00\x80\x00\x00\x0f\x0b", 1)
    trial.expect("ring 1 reads a supervisor page", event == ("invalid opcode", at + 8, 0))
    at, event = trial.run(b"\xb8\x00\xa0\x00\x00\xff\xe0")  # mov eax, no-execute page; jmp rax
    trial.expect("NX is honoured", event == ("exception", NO_EXECUTE << 12, 14 << 16 | 0x15))
    entry, store = L1 << 9 | DATA, b"\x48\x89\x03\x0f\x0b"  # mov [rbx], rax; ud2
    trial.run(store)
    trial.ram.writable.q[entry] &= ~PTE_RW
    trial.engine.flush_page(DATA << 12)
    at, event = trial.run(store)
    trial.expect("a flushed page's entry is read again", event == ("exception", at, 14 << 16 | 7))
    trial.ram.writable.q[entry] |= PTE_RW
    trial.engine.flush_tlb()
    for cpl in (3, 1):
        for code, name in ((b"\xfa", "CLI"), (b"\x0f\x20\xc0", "MOV from CR0")):
            at, event = trial.run(code, cpl)
            trial.expect(f"{name} faults in ring {cpl}", event == ("exception", at, 13 << 16))
    at, event = trial.run(b"\xcd\x21")
    trial.expect(
        "INT n leaves RIP behind the instruction",
        event is not None and event[:2] == ("interrupt", at + 2) and event[2] >> 16 == 0x21,
    )


def _calls(trial: Trial) -> None:
    """SYSCALL and its RIP; CPUID is answered by the sink; a refused port has no side effects."""
    at, event = trial.run(b"\x90\x0f\x05")
    trial.expect("SYSCALL is seen at its address", event == ("syscall", at + 1, 2))
    trial.expect("SYSCALL goes on where it was told", trial.go() == ("invalid opcode", LANDING, 0))
    trial.run(b"\x31\xc0\x0f\xa2\x0f\x0b")  # xor eax, eax; cpuid; ud2
    trial.expect("CPUID is answered by pyhv", trial.engine.vmcb.q[v.RAX] == 0x1234)
    for cpl in (3, 1):
        at, event = trial.run(
            b"\x0f\x31\x48\x97\x0f\x01\xf9\x0f\x0b", cpl
        )  # rdtsc; xchg rax, rdi; rdtscp; ud2
        registers = trial.engine.vmcb.q
        first, second, aux = registers[v.RDI], registers[v.RAX], registers[v.RCX]
        trial.expect("RDTSC and RDTSCP are answered by pyhv", (first, second, aux) == (at, at + 4, AUX))
        trial.engine.trap_user_time(True)
        at, event = trial.run(b"\x0f\x31", cpl)
        trial.expect("RDTSC faults where CR4.TSD is set", event == ("exception", at, 13 << 16))
        trial.engine.trap_user_time(False)
    trial.ram.writable.q[DATA << 9] = 7
    # mov eax, 5; out 0x80, al; mov [rbx], rax; mov eax, 6; syscall
    at, event = trial.run(b"\xb8\x05\x00\x00\x00\xe6\x80\x48\x89\x03\xb8\x06\x00\x00\x00\x0f\x05")
    trial.expect(
        "a refused OUT has no side effects",
        event == ("port fault", at + 5, 5) and trial.ram.q[DATA << 9] == 7,
    )


def _flags(trial: Trial) -> None:
    """Flags go in and come out, whether they were computed or set."""
    engine = trial.engine
    trial.run(b"\xfd\x31\xc0\x83\xe8\x01\x0f\x0b")  # std; xor eax, eax; sub eax, 1; ud2
    trial.expect("flags are read", engine.rflags() == 0x202 | 0x400 | 0x80 | 0x10 | 0x4 | 0x1)
    for wanted in (0x202 | 0x8D5, 0x202):
        trial.sink.flags_in_syscall = wanted
        # xor eax, eax; sub eax, 1; syscall; lahf; mov [rbx + 8], ah; pushfq; pop [rbx]; ud2
        trial.run(b"\x31\xc0\x83\xe8\x01\x0f\x05\x9f\x88\x63\x08\x9c\x8f\x03\x0f\x0b")
        low_byte = trial.ram.raw[(DATA << 12) + 8]
        trial.expect("flags are set", trial.ram.q[DATA << 9] == wanted and low_byte == wanted & 0xFF)


def _stops(trial: Trial) -> None:
    """Stopping executes nothing twice: neither when the byte budget is spent nor when asked at any moment."""
    engine, q, data = trial.engine, trial.ram.writable.q, DATA << 9
    q[data] = 0
    # mov ecx, rounds; 1: lock inc qword [rbx]; dec ecx; jnz 1b; ud2
    loop = b"\xb9" + _ROUNDS.to_bytes(4, "little") + b"\xf0\x48\xff\x03\xff\xc9\x75\xf8\x0f\x0b"
    stopped = 0
    trial.run(b"\x0f\x0b")
    at, event = trial.run(b"\x0f\x0b" + loop)
    engine.vmcb.rip = at + 2
    trial.sink.events.clear()
    while not trial.sink.events:
        trial.budget[0] = 40
        engine.run()
        stopped += 1
    trial.expect("a spent budget stops between blocks", q[data] == _ROUNDS and stopped > _ROUNDS // 8)
    if not engine.async_stop_safe:
        return
    q[data] = 0
    # xor ecx, ecx; in al, 0x80 (which asks for a stop); cpuid; mov rdi, rax; lock inc qword [rbx]; inc ecx;
    # jmp 1f; 1: ud2
    code = b"\x31\xc9\xe4\x80\x0f\xa2\x48\x89\xc7\xf0\x48\xff\x03\xff\xc1\xeb\x00\x0f\x0b"
    at, event = trial.run(code)
    end = at + len(code) - 2
    registers = engine.vmcb.q
    done = event is None and registers[v.RIP] == end and q[data] == 1 and registers[v.RCX] == 1
    trial.expect("a stop from outside waits for the end of the block", done)
    trial.expect("no exit is lost to a stop that waits", registers[v.RDI] == 0x1234)
    trial.expect("a stopped guest goes on", trial.go() == ("invalid opcode", end, 0) and q[data] == 1)


def _stores(trial: Trial) -> None:
    """Stores to watched frames are felt by code translated from them, also through a no-execute page."""
    engine, alias = trial.engine, trial.take_frame()
    if engine.watch is not None:
        engine.watch.add((CODE, CODE))
    trial.map(alias, CODE, LEAF | PTE_NX)
    function, through = CODE << 12 | 0xE00, alias << 12 | 0xE00
    trial.ram.writable.raw[function : function + 6] = b"\xb8\x01\x00\x00\x00\xc3"  # mov eax, 1; ret
    call = b"\xb9" + function.to_bytes(4, "little") + b"\xff\xd1"  # mov ecx, function; call rcx
    stores = b"".join(  # mov byte [through + 16], 2; mov byte [through + 1], 2
        b"\xc6\x04\x25" + address.to_bytes(4, "little") + b"\x02" for address in (through + 16, through + 1)
    )
    trial.run(call + stores + call + b"\x0f\x0b")
    trial.expect("code that is overwritten is translated anew", engine.vmcb.q[v.RAX] == 2)


def _refusals(trial: Trial) -> None:
    """a block is looked at when it has been translated, and translated otherwise if it must be"""
    code = b"\x90\xf0\x89\xc0"  # nop; lock mov eax, eax
    at, event = trial.run(code)
    trial.expect("an instruction that is refused is #UD", event == ("invalid opcode", at + 1, 0))
    trial.expect("memory is as it was", bytes(trial.ram.raw[at : at + len(code)]) == code)


CHECKS: Final[Mapping[str, Callable[[Trial], None]]] = {
    "page faults, privileges": _faults,
    "calls and ports": _calls,
    "flags": _flags,
    "stops": _stops,
    "stores to code": _stores,
    "looks at translation": _refusals,
}
"""What is tried, in this order; each raises BrokenPromise."""


def require_executable_memory() -> None:
    """EngineError with what to do if the host gives none, without which nothing can be tried."""
    refused = executable_memory_refused()
    if refused:
        raise EngineError(refused)


def check(trial: Trial) -> None:
    """Try everything. BrokenPromise, or GuestCrash if the emulator gives up."""
    for one in CHECKS.values():
        one(trial)


@once
def self_test() -> None:
    """Check the crucial behaviour of the emulator as it is installed, once per process.

    EngineError with what is wrong and what to install if it is not the emulator that pyhv knows.
    """
    require_executable_memory()
    try:
        with Trial() as trial:
            check(trial)
    except BrokenPromise as broken:
        raise EngineError(
            f"The emulator breaks a rule that pyhv builds on ({broken.promise}). {REMEDY}"
        ) from broken
    except GuestCrash as crash:
        raise EngineError(f"The emulator gave up in pyhv's self-test: {crash.why}. {REMEDY}") from crash
