# SPDX-License-Identifier: GPL-2.0-only
"""Breakpoints that cost nothing where they are not met: the emulator's own, given back their hands.

The library translates a breakpoint into the end of a block, and marks the pages of watchpoints in its TLB, so
that only accesses to these pages are looked at (Intel SDM vol. 3, 18.2). But what it does when one is met is
not ours, and its list of watchpoints was taken out. So its questions are answered here from the engine's
block, and each answer is #DB in the library's own way, with the state as it was before the instruction; the
word `debug_cause` tells why:

    cpu_watchpoint_address_matches   a page enters the TLB        is a watched range in it?
    cpu_check_watchpoint             an access to such a page     does it touch a range? cause 1, or 4 if that
                                                                  is an observed one; or, while `debug_log`
                                                                  has room, it is only written down
    helper_debug                     a breakpoint's address       cause 2
    helper_iret_protected            IRET, while `debug_iret`     cause 3: it may set RF for one instruction

Who sets the words, and what follows, is `debugunit.py`.
"""

import ctypes
import mmap
from typing import Final

from pyhv.cpu.debugunit import (
    LOG_ENTRIES,
    MET_BREAKPOINT,
    MET_IRET,
    MET_OBSERVED,
    MET_WATCH,
    RANGES,
)
from pyhv.cpu.trial import DATA, BrokenPromise, Trial
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.form import OF_CPU, Facts, Patch, Stub, Word, find_block
from pyhv.cpu.tuning.helpers import helper_stub

_DB: Final = 1
_LARGEST: Final = 16
"""Bytes of an access; what is told as larger is a page of which the library does not know better."""
_OF_STATE: Final = f"rdi - {layout.ENV_OF_CPU - layout.CPU_UC}"


def _for_each_range(body: str) -> str:
    return "".join(
        body.replace("NUMBER", str(number)).replace("WHOSE", "observed" if number >= RANGES else "watched")
        for number in range(2 * RANGES)
    )


# int cpu_watchpoint_address_matches(cpu, address, length)
_MATCHES: Final = f"""
    {find_block(OF_CPU)}
    mov r8, rax
    xor eax, eax
    cmp qword ptr [r8 + {{word.debug_watching}}], 0
    je matched
    lea rdx, [rsi + rdx - 1]
""" + _for_each_range(
    """
    cmp [r8 + {word.debug_first_NUMBER}], rdx
    ja no_match_NUMBER
    cmp [r8 + {word.debug_last_NUMBER}], rsi
    jb no_match_NUMBER
    or rax, [r8 + {word.debug_kind_NUMBER}]
no_match_NUMBER:
"""
) + """
matched:
    ret
"""  # fmt: skip

# void cpu_check_watchpoint(cpu, address, length, attributes, kind, return address)
_CHECK: Final = f"""
    {find_block(OF_CPU)}
    cmp qword ptr [rax + {{word.debug_watching}}], 0
    je checked
    mov r10, [rax + {{word.debug_log}}]
    test r10, r10
    jnz write_down
    cmp rdx, {_LARGEST}
    jbe exact
    and rsi, -{mmap.PAGESIZE}
    mov edx, {mmap.PAGESIZE}
exact:
    lea rdx, [rsi + rdx - 1]
""" + _for_each_range(
    """
    test [rax + {word.debug_kind_NUMBER}], r8
    jz untouched_NUMBER
    cmp [rax + {word.debug_first_NUMBER}], rdx
    ja untouched_NUMBER
    cmp [rax + {word.debug_last_NUMBER}], rsi
    jae touched_WHOSE
untouched_NUMBER:
"""
) + f"""
checked:
    ret
touched_observed:
    mov r11d, {MET_OBSERVED}
    jmp touched
touched_watched:
    mov r11d, {MET_WATCH}
touched:
    test r9, r9
    jz checked
    mov [rax + {{word.debug_cause}}], r11
    mov rdi, [rdi + {layout.CPU_ENV}]
    mov esi, {_DB}
    xor edx, edx
    mov rcx, r9
    movabs rax, {{real.raise_exception_err_ra}}
    jmp rax
write_down:
    mov r11, [r10]
    cmp r11, {LOG_ENTRIES}
    jae checked
    inc qword ptr [r10]
    lea r11, [r11 + r11 * 2]
    lea r10, [r10 + r11 * 8 + 8]
    mov [r10], rsi
    mov [r10 + 8], rdx
    mov [r10 + 16], r8
    ret
"""  # fmt: skip

_BREAKPOINT: Final = f"""
    {find_block(_OF_STATE, otherwise="plain_breakpoint")}
    mov qword ptr [rax + {{word.debug_cause}}], {MET_BREAKPOINT}
    mov esi, {_DB}
    xor edx, edx
    xor ecx, ecx
    movabs rax, {{real.raise_exception_err_ra}}
    jmp rax
plain_breakpoint:
    movabs rax, {{real.helper_debug}}
    jmp rax
"""

_IRET: Final = f"""
    {find_block(_OF_STATE, otherwise="plain_iret")}
    cmp qword ptr [rax + {{word.debug_iret}}], 0
    je plain_iret
    mov qword ptr [rax + {{word.debug_cause}}], {MET_IRET}
    mov esi, {_DB}
    xor edx, edx
    mov rcx, [rsp]
    movabs rax, {{real.raise_exception_err_ra}}
    jmp rax
plain_iret:
    movabs rax, {{real.helper_iret_protected}}
    jmp rax
"""


def _make_log(facts: Facts) -> int:
    return facts.allocate(mmap.PAGESIZE)


_WORDS: Final = (
    Word("debug_cause"),
    Word("debug_watching"),
    Word("debug_iret"),
    Word("debug_log"),
    Word("debug_log_at", _make_log),
    *(Word(f"debug_{what}_{number}") for number in range(2 * RANGES) for what in ("first", "last", "kind")),
)


def _proof(trial: Trial) -> None:
    """A store to a watched word is #DB before it is done; one beside it, or a load, is done."""
    block = trial.engine.block
    if block is None:
        raise BrokenPromise("an engine that meets breakpoints has a block for them")
    watched = (DATA << 12) + 8
    block["debug_first_0"], block["debug_last_0"], block["debug_kind_0"] = (
        watched, watched + 7, layout.MEMORY_WRITE,
    )  # fmt: skip
    block["debug_watching"] = 1
    trial.engine.flush_tlb()
    # mov rcx, [rbx + 8]; mov [rbx], rcx; inc qword ptr [rbx + 8]; ud2
    code = bytes.fromhex("488b4b08 48890b 48ff4308 0f0b")
    trial.ram.writable.q[watched >> 3] = 5
    at, event = trial.run(code)
    trial.expect("a watched store is met before it is done", event == ("exception", at + 7, _DB << 16))
    met = trial.ram.q[watched >> 3] == 5 and trial.ram.q[(watched >> 3) - 1] == 5
    trial.expect("a watched store leaves memory alone", met and block["debug_cause"] == MET_WATCH)
    block["debug_log"] = block["debug_log_at"]
    trial.expect("a watched store can be done", trial.go() == ("invalid opcode", at + 11, 0))
    trial.expect("its accesses are written down", _count(block["debug_log_at"]) == 1)
    block["debug_watching"] = block["debug_kind_0"] = block["debug_cause"] = block["debug_log"] = 0
    ctypes.memset(block["debug_log_at"], 0, 8)


def _count(address: int) -> int:
    return int.from_bytes(ctypes.string_at(address, 8), "little")


WATCHING: Final = Patch(
    name="breakpoints",
    promise="breakpoints are met by the emulator, at no cost elsewhere",
    stubs=(
        Stub("cpu_watchpoint_address_matches", _MATCHES),
        Stub("cpu_check_watchpoint", _CHECK),
        helper_stub(
            {"helper_debug": _BREAKPOINT, "helper_iret_protected": _IRET},
            "", "helper_debug", "helper_iret_protected",
        ),
    ),
    proof=_proof,
    words=_WORDS,
)  # fmt: skip
