# SPDX-License-Identifier: GPL-2.0-only
"""Attacks of which the attacker itself dies: by name, with its cause, and nobody else."""

import pytest
from test_hostile import SECOND, Auditor

from pyhv.abi.numbers import Shutdown
from pyhv.domain.config import DomainConfig
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.testing.guest_machine import Run, Sink, image_of, run
from pyhv.until import Outcome

DYING = """
.include "hostile/hostile.inc"
.include "hostile/user.inc"
.set __HYPERVISOR_set_callbacks, 4
.text
_start:
    hostile_entry "dying"
"""

DEATHS = {
    "iret with its frame in the hypervisor's space": ("unreadable frame", """
    mov rsp, HYPERVISOR_HOLE
    hypercall iret
"""),
    "iret with its frame at the end of the lower half": ("unreadable frame", """
    mov rsp, LOWER_HALF_END - 8
    hypercall iret
"""),
    "iret with its frame where nothing is": ("unreadable frame", """
    mov rsp, NOWHERE
    hypercall iret
"""),
    "iret to user mode without a user table": ("without a user page table", """
    push FLAT_RING3_SS64
    push rsp
    push 2
    push FLAT_RING3_CS64
    push 0
    push 0
    push 0
    push 0
    push 0
    hypercall iret
"""),
    "an exception with the stack in the hypervisor's space": ("hypervisor's area", """
    mov rsp, HYPERVISOR_HOLE + 0x1000
    ud2
"""),
    "an exception with the stack just above it": ("hypervisor's area", """
    mov rsp, 0xffff880000000040
    ud2
"""),
    "an exception with the stack at address 0": ("bounce frame", """
    xor esp, esp
    ud2
"""),
    "an exception with a stack that is not canonical": ("no kernel stack", """
    mov rsp, NOT_CANONICAL
    ud2
"""),
    "an exception with the stack in a page table": ("read-only", """
    mov rsp, [rip + start_info]
    mov rsp, [rsp + START_INFO_pt_base]
    add rsp, 4096
    ud2
"""),
    "user mode leaves to a stack in the hypervisor's space": ("hypervisor's area", """
    call user_init
    mov edi, FLAT_RING3_SS64
    mov rsi, HYPERVISOR_HOLE + 0x1000
    hypercall stack_switch
    must_succeed "stack_switch"
    lea r15, [rip + user_code]
    call go_to_user
user_code:
    syscall
"""),
    "user mode leaves to a stack in a page table": ("read-only", """
    call user_init
    mov edi, FLAT_RING3_SS64
    lea rsi, [rip + user_l4 + 4096]
    hypercall stack_switch
    must_succeed "stack_switch"
    lea r15, [rip + user_code]
    call go_to_user
user_code:
    syscall
"""),
    "an exception without a handler": ("without a handler", """
    xor edi, edi
    hypercall set_trap_table
    ud2
"""),
    "the page of the handler's stack given away": ("not mapped", """
    lea rdi, [rip + boot_stack]
    mov rsi, 0
    mov edx, UVMF_INVLPG
    hypercall update_va_mapping
    lea rdi, [rip + boot_stack + 4096]
    xor esi, esi
    mov edx, UVMF_INVLPG
    hypercall update_va_mapping
    ud2
"""),
    "a handler in the hypervisor's space": ("", """
    mov rax, HYPERVISOR_HOLE
    mov [rip + trap_table + 5 * 16 + 8], rax
    mov [rip + trap_table + 11 * 16 + 8], rax
    lea rdi, [rip + trap_table]
    hypercall set_trap_table
    must_succeed "a handler there"
    ud2
"""),
    "a breakpoint on the handler of breakpoints": ("", """
    lea rsi, [rip + entry_1]
    xor edi, edi
    hypercall set_debugreg
    must_succeed "a breakpoint"
    mov edi, 7
    mov esi, 1
    hypercall set_debugreg
    must_succeed "enabling it"
    .byte 0xf1
"""),
    "a breakpoint inside the handler of breakpoints": ("", """
    lea rdi, [rip + boot_stack]                 # the stack has an end
    xor esi, esi
    mov edx, UVMF_INVLPG
    hypercall update_va_mapping
    must_succeed "unmapping a page"
    lea rsi, [rip + trap_common]
    xor edi, edi
    hypercall set_debugreg
    must_succeed "a breakpoint"
    mov edi, 7
    mov esi, 1
    hypercall set_debugreg
    must_succeed "enabling it"
    .byte 0xf1
"""),
    "the code that runs, unmapped": ("", """
    xor edi, edi
    hypercall set_trap_table
    mov edi, 0x100000
.next:
    mov [rip + list], rdi
    xor esi, esi
    mov edx, UVMF_INVLPG
    hypercall update_va_mapping
    mov rdi, [rip + list]
    add rdi, 4096
    jmp .next
.data
.balign 8
list: .quad 0
"""),
}  # fmt: skip


DYING_32 = """
.width 32
.include "hostile/hostile32.inc"
.text
_start:
    hostile_entry "dying"
"""

ENTER_RING3 = """
    mov eax, code
    mov edx, PTE_P | PTE_US | PTE_A
    call remap
    push FLAT_RING3_DS
    push 0
    push 2
    push FLAT_RING3_CS
    mov eax, code
    push eax
    iret_hypercall
.balign PAGE_SIZE
code:
    ud2
.balign PAGE_SIZE
"""

DEATHS_32 = {
    "iret to ring 0": ("ring 0", """
    push 2
    push XEN_RING0_CS64
    push 0
    iret_hypercall
"""),
    "iret with its frame in the M2P's end": ("unreadable frame", """
    mov esp, HYPERVISOR_HOLE
    mov eax, __HYPERVISOR_iret
    int 0x82
"""),
    "iret with its frame over the end of 4 GiB": ("unreadable frame", """
    mov esp, 0xfffffff8
    mov eax, __HYPERVISOR_iret
    int 0x82
"""),
    "an exception with the stack in the M2P": ("no kernel stack", """
    mov esp, MACH2PHYS_VIRT_START + 64
    ud2
"""),
    "an exception with the stack at address 0, which wraps": ("no kernel stack", """
    xor esp, esp
    ud2
"""),
    "an exception with the stack in a page table": ("read-only", """
    mov esp, [start_info]
    mov esp, [esp + START_INFO_pt_base]
    add esp, 4096
    ud2
"""),
    "ring 3 leaves to a stack in the hypervisor's segment": ("cannot be loaded", """
    mov ebx, XEN_RING0_DS
    mov ecx, boot_stack_top
    hypercall stack_switch
""" + ENTER_RING3),
    "ring 3 leaves to a stack of ring 3": ("cannot be loaded", """
    mov ebx, FLAT_RING3_DS
    mov ecx, boot_stack_top
    hypercall stack_switch
""" + ENTER_RING3),
    "ring 3 leaves to a stack in the hypervisor's space": ("no kernel stack", """
    mov ebx, FLAT_RING1_DS
    mov ecx, HYPERVISOR_HOLE + 64
    hypercall stack_switch
""" + ENTER_RING3),
    "a handler in the hypervisor's 64-bit code": ("cannot be loaded", """
    mov word ptr [trap_table + 5 * 8 + 2], XEN_RING0_CS64
    mov ebx, trap_table
    hypercall set_trap_table
    must_succeed "a handler there"
    ud2
"""),
    "a handler in ring 3": ("cannot be loaded", """
    mov word ptr [trap_table + 5 * 8 + 2], FLAT_RING3_CS
    mov ebx, trap_table
    hypercall set_trap_table
    must_succeed "a handler there"
    ud2
"""),
    "an event callback in the hypervisor's code": ("cannot be loaded", """
    mov dword ptr [callback_arg], 0
    mov dword ptr [callback_arg + 4], XEN_RING0_CS64
    mov ebx, CALLBACKOP_register
    mov ecx, callback_arg
    hypercall callback_op
    must_succeed "a callback there"
    mov byte ptr [shared_info + VCPU_INFO_upcall_pending], 1
    mov byte ptr [shared_info + VCPU_INFO_upcall_mask], 0
    xor ebx, ebx
    hypercall xen_version
"""),
}  # fmt: skip

DYING_OF = {how: (why, DYING + body) for how, (why, body) in DEATHS.items()}
DYING_OF |= {f"{how}, 32 bits": (why, DYING_32 + body) for how, (why, body) in DEATHS_32.items()}


@pytest.mark.parametrize("how", DYING_OF)
def test_who_digs_a_pit_falls_into_it(how: str) -> None:
    """A crash of the guest, with its cause told, and of nothing else."""
    why, source = DYING_OF[how]
    machine = Machine(MachineConfig(2 * 1024, virtual_time=True))
    try:
        free = machine.frames.free_count
        sinks = [Sink(), Sink()]
        image = load_image(image_of(source), "dying")
        dying = machine.create(image, DomainConfig("dying", 1024), console=sinks[0])
        machine.create(
            load_image(build_builtin("hello"), "hello"), DomainConfig("hello", 1024), console=sinks[1]
        )
        machine.observe(Auditor(machine))
        assert machine.run(timeout_ns=5 * SECOND) is Outcome.ENDED
        assert dying.life.crashed
        assert why in (dying.life.cause or ""), dying.life.cause
        assert b"SUCCESS\n" in sinks[1].data
        assert machine.audit() == []
        assert machine.frames.free_count == free
    finally:
        machine.close()


def test_a_wrong_answer_ends_the_guest_with_a_crash() -> None:
    done: Run = run(
        DYING + '    attack "what is right", -EPERM, xen_version, 0, 0, 0, 0\n    hostile_end\n', pages=1024
    )
    assert done.outcome is Outcome.ENDED
    assert "FAILED: what is right: the answer should be -1, it is " in done.output
    assert "SUCCESS" not in done.output
    assert done.domain.life.reason == Shutdown.CRASH
