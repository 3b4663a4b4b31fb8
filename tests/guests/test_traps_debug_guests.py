# SPDX-License-Identifier: GPL-2.0-only
"""Debug exceptions in whole guests, of either width, that look after themselves."""

import pytest
from test_traps_debug import ACCESS, LENGTH

from pyhv.cpu.exits import ExitKind
from pyhv.domain.config import DomainConfig
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.testing.guest_machine import PAGES, SECOND, Sink, machine
from pyhv.testing.guest_machine import run as run_guest
from pyhv.until import Outcome

pytestmark = pytest.mark.usefixtures("engines")


@pytest.mark.parametrize(
    "name", ["hello", "debug", "usermode", "ticker", "pages", "hello32", "traps32", "events32"]
)
def test_no_guest_notices_that_it_is_stepped(name: str) -> None:
    """Built-in guests with breakpoints that they never reach: one of each kind, set from outside."""
    with machine() as made:
        sink = Sink()
        image = load_image(build_builtin(name), name)
        domain = made.create(image, DomainConfig(name, PAGES), console=sink)
        resident = made.residents[domain.domid]
        debug = domain.vcpus[0].debug.registers
        debug[0], debug[1], debug[7] = 0x10, 0x500000, 0x400 | 1 | 4 | (ACCESS | LENGTH[4] << 2) << 20
        assert made.run(timeout_ns=20 * SECOND) is Outcome.ENDED
        assert b"SUCCESS" in sink.data, sink.data
        steps = resident.dispatcher.counts[ExitKind.EXCEPTION]
        assert (steps > 1000) is (domain.engine.debug_unit is None)
        assert made.audit() == []


COMPAT = r"""
.width 32
.include "xen.inc"
.include "kernel32.inc"
.include "traps32.inc"

.macro stopped count, status, where, what
    cmp dword ptr [seen], \count
    check e, "\what: how often"
    cmp dword ptr [seen_status], \status
    check e, "\what: why"
    cmp dword ptr [seen_eip], \where
    check e, "\what: where"
    mov dword ptr [seen], 0
.endm

.text
_start:
    kernel_entry
    call traps_init
    set_handler 1, on_debug
    mov eax, stop_here
    mov dr0, eax
    mov eax, cell
    mov dr1, eax
    mov eax, 5 | 0xd << 20                      # execute; write, 4 bytes
    mov dr7, eax
    mov eax, [cell]
stop_here:
    mov ecx, 5
    stopped 1, 1, stop_here, "instruction breakpoint"
    mov byte ptr [cell + 3], 7
after_store:
    stopped 1, 2, after_store, "watchpoint"
    mov edx, esp
    mov esp, cell + 4
    push ecx
after_push:
    mov esp, edx
    stopped 1, 2, after_push, "watchpoint, a push"
    mov edi, cell - 2
    mov ecx, 8
    xor eax, eax
string:
    rep stosb
after_string:
    stopped 4, 2, string, "watchpoint, a string"
    .byte 0xf1
after_icebp:
    stopped 1, 0, after_icebp, "ICEBP"
    mov eax, 0
    mov dr7, eax
    pushfd
    or dword ptr [esp], 0x100
    popfd
    nop
    pushfd
    and dword ptr [esp], -0x101
    popfd
after_steps:
    stopped 4, 1 << 14, after_steps, "steps"
    succeed

on_debug:                                       # (eax = frame)
    inc dword ptr [seen]
    mov ecx, [eax + FRAME_eip]
    mov [seen_eip], ecx
    or dword ptr [eax + FRAME_eflags], 1 << 16
    mov ecx, dr6
    xor ecx, 0xffff0ff0
    mov [seen_status], ecx
    mov ecx, 0xffff0ff0
    mov dr6, ecx
    ret

.data
seen:           .long 0
seen_eip:       .long 0
seen_status:    .long 0
.balign 8
                .zero 512
cell:           .long 0, 0
"""


def test_breakpoints_of_a_32_bit_kernel() -> None:
    done = run_guest(COMPAT)
    assert done.passed, (done.outcome, done.output, done.domain.life.cause)
