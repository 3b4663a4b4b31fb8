# SPDX-License-Identifier: GPL-2.0-only
"""Two machines in one process, each in a thread of its own, do not know of each other."""

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from pyhv.domain.config import DomainConfig
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.observe.digest import Digest
from pyhv.testing.guest_machine import HEADER, START, TRAPS, Sink, image_of
from pyhv.until import Outcome

PAGES = 4096

ABORTING = (
    HEADER
    + START
    + TRAPS
    + """
    set_handler 6, skip
    mov r12d, 200
again:                                          # LOCK BTS of a register, each time as new code
    mov [rip + patched + 1], r12d
patched:
    mov eax, 0x11223344
    .byte 0xf0, 0x48, 0x0f, 0xab, 0xdb          # aborts an emulator that translates it
    cmp eax, r12d
    check e, "old code has run"
    mov eax, [rip + undefined]
    add eax, r12d
    cmp eax, 201
    check e, "an undefined instruction was executed"
    mov rax, [rip + start_info]                 # a storm: a page is mapped read-only and writable again
    lea rdi, [rip + page]
    mov esi, PTE_P | PTE_A
    call remap
    must_succeed "mapping a page read-only"
    lea rdi, [rip + page]
    mov esi, PTE_P | PTE_RW | PTE_A | PTE_D
    call remap
    must_succeed "mapping a page writable"
    mov [rip + page], r12
    dec r12d
    jnz again
    succeed
skip:
    inc dword ptr [rip + undefined]
    add qword ptr [rdi + FRAME_rip], 5
    ret
.data
.balign 4
undefined: .long 0
.bss
.balign PAGE_SIZE
page: .zero PAGE_SIZE
"""
)
CRASHING = (
    HEADER
    + START
    + """
    mov ecx, 100000
again:
    dec ecx
    jnz again
    xor eax, eax
    mov [rax], eax
"""
)
TICKED = HEADER + START + "    mov rcx, 60000000\nagain:\n    dec rcx\n    jnz again\n    succeed\n"


def run(*, tuned: bool, seed: int) -> str:
    """A machine whose guests abort the emulator, rewrite their code and tables, attack, and crash."""
    guests = {
        "aborting": image_of(ABORTING), "crashing": image_of(CRASHING),
        "again": image_of(ABORTING), "attack": build_builtin("hostile/races"),
    }  # fmt: skip
    machine = Machine(MachineConfig(PAGES * len(guests), virtual_time=True, seed=seed, tuned=tuned))
    digest, sinks = Digest(), []
    machine.observe(digest)
    try:
        for name, image in guests.items():
            sinks.append(Sink())
            machine.create(load_image(image, name), DomainConfig(name, PAGES), console=sinks[-1])
        outcome = machine.run(timeout_ns=60 * 10**9)
        assert machine.audit() == []
        return f"{digest.summary()}{outcome} {[sink.data for sink in sinks]}"
    finally:
        machine.close()


def in_threads(*work: Callable[[], object]) -> list[object]:
    """Do all at once; what came of each, exceptions too."""
    results: list[object] = [None] * len(work)

    def do(number: int) -> None:
        try:
            results[number] = work[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=do, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.promise("I-18")
def test_each_runs_as_if_it_were_alone() -> None:
    alone = [run(tuned=True, seed=1), run(tuned=False, seed=2)]
    assert all(text.count("SUCCESS") == 3 for text in alone)
    assert in_threads(lambda: run(tuned=True, seed=1), lambda: run(tuned=False, seed=2)) == alone


@pytest.mark.promise("I-18")
def test_each_ticker_stops_its_own_machine() -> None:
    """Real time: two guests on each machine compute without an exit, and all get their turns."""

    def ticked() -> list[bytes]:
        machine = Machine(MachineConfig(2 * PAGES))
        sinks = [Sink(), Sink()]
        try:
            for sink in sinks:
                machine.create(load_image(image_of(TICKED), "ticked"), DomainConfig("t", PAGES), console=sink)
            assert machine.run(timeout_ns=60 * 10**9) is Outcome.ENDED
            return [sink.data for sink in sinks]
        finally:
            machine.close()

    image_of(TICKED)
    assert in_threads(ticked, ticked) == [[b"SUCCESS\n"] * 2] * 2


@pytest.mark.promise("I-18")
def test_the_first_two_machines_of_a_process_may_come_at_once() -> None:
    """What belongs to the process - the library's pointers, proofs - is found out once."""
    code = """
import sys; sys.path.insert(0, "tests/support"); sys.path.insert(0, "tests/guests")
from pyhv.testing.guest_machine import image_of
from test_two_machines import ABORTING, CRASHING, in_threads, run
from pyhv.cpu import stops
image_of(ABORTING), image_of(CRASHING)
sys.setswitchinterval(1e-5)
made = in_threads(*[lambda: run(tuned=True, seed=1)] * 3)
assert made[0] == made[1] == made[2] and made[0].count("SUCCESS") == 3, made
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
