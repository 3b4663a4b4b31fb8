# SPDX-License-Identifier: GPL-2.0-only
"""A guest to whom every moment at which something comes in makes a difference.

It computes without end, mixes in the clock, sleeps now and then for a time that follows from that, and prints
what it has become whenever a byte is typed. A `q` ends it.
"""

from pyhv.testing.guest_machine import image_of

SOURCE = """
.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "events.inc"
.set IN_CONS, 3072
.set IN_PROD, 3076

.text
_start:
    kernel_entry
    call traps_init
    call events_init
    call bind_timer
    mov ebp, eax
    bind_port rbp, tick
    mov eax, [rip + console_port]
    bind_port rax, typed
    mov r12, 88172645463325252
again:
    mov rcx, r12
    and ecx, 1023
    add ecx, 50
mix:
    mov rax, r12
    shl rax, 13
    xor r12, rax
    mov rax, r12
    shr rax, 7
    xor r12, rax
    mov rax, r12
    shl rax, 17
    xor r12, rax
    mov [rip + mixed], r12
    dec ecx
    jnz mix
    call system_time
    xor r12, rax
look:
    mov rbx, [rip + console_page]
    mov ecx, [rbx + IN_CONS]
    cmp ecx, [rbx + IN_PROD]
    je nothing
    mov eax, ecx
    and eax, 1023
    movzx r13d, byte ptr [rbx + rax]
    inc ecx
    mov [rbx + IN_CONS], ecx
    cmp r13b, 'q'
    je end
    add r12, r13
    print_hex r12
    print "\\n"
    jmp look
nothing:
    test r12b, 3
    jnz again
    call system_time
    mov rdi, r12
    shr rdi, 30
    and edi, 0xfffff                                    # up to a millisecond
    add rdi, rax
    call set_timer
    mov edi, SCHEDOP_block
    xor esi, esi
    hypercall sched_op
    jmp again
end:
    print_hex r12
    print "\\n"
    succeed

tick:
    inc qword ptr [rip + ticks]
    ret
typed:
    inc qword ptr [rip + events]
    ret

.data
.balign 8
mixed:  .quad 0
ticks:  .quad 0
events: .quad 0
"""


def listener() -> bytes:
    """The guest's image."""
    return image_of(SOURCE)
