# SPDX-License-Identifier: GPL-2.0-only
"""One domain's share of the machine, beside another that does its worst.

`victim` computes; `attacker` keeps the hypervisor busy in one way after the other. Both have the same weight.
The victim's progress is compared with what it makes alone in half of the time.
"""

from guest_machine import HEADER, PAGES, image_of, machine

from pyhv.domain import DomainConfig
from pyhv.loader.elf import load_image
from pyhv.machine import Outcome

VICTIM = """
.include "xen.inc"
.include "kernel.inc"
.text
_start:
    kernel_entry
    print "ready\\n"
    lea rbx, [rip + counter]
.again:
    inc qword ptr [rbx]
    jmp .again
.bss
.balign PAGE_SIZE
counter: .zero PAGE_SIZE
"""

START = """
.text
_start:
    kernel_entry
    call traps_init
    call events_init
    call xenstore_init
    call bind_timer
    print "ready\\n"
    lea rbx, [rip + page]
"""
INCLUDES = HEADER + '.include "events.inc"\n.include "xenstore.inc"\n'
DATA = """
.data
.balign 8
node:   .asciz "data/x"
token:  .asciz "t"
words:  .quad 0, 0, 0, 0
.bss
.balign PAGE_SIZE
page:   .zero PAGE_SIZE
l1:     .zero PAGE_SIZE
l2:     .zero PAGE_SIZE
text:   .zero 16 * PAGE_SIZE
"""

ATTACKS = {
    "computing": ".again: jmp .again",
    "hypercalls": """
.again:
    mov edi, XENVER_version
    xor esi, esi
    hypercall xen_version
    jmp .again
""",
    "unknown hypercalls": """
.again:
    mov eax, 63
    syscall
    jmp .again
""",
    "yields": """
.again:
    mov edi, SCHEDOP_yield
    xor esi, esi
    hypercall sched_op
    jmp .again
""",
    "faults": """
    set_handler TRAP_page_fault, back
.again:
    mov rax, [0x3fe00000]
    jmp .again
back:
    ret
""",
    "emulated instructions": """
.again:
    mov rax, cr4
    jmp .again
""",
    "ports": """
    set_handler 13, past_it
.again:
    mov dx, 0x80
    in al, dx
    jmp .again
past_it:
    inc qword ptr [rdi + FRAME_rip]             # IN AL, DX is one byte long
    ret
""",
    "time stamps": """
.again:
    rdtsc
    jmp .again
""",
    "multicalls": """
    mov ecx, 64
    mov rdi, rbx
.fill:
    mov qword ptr [rdi], __HYPERVISOR_xen_version
    add rdi, 64
    dec ecx
    jnz .fill
.again:
    mov rdi, rbx
    mov esi, 64
    hypercall multicall
    jmp .again
""",
    "TLB flushes": """
    mov ecx, 170
    mov rdi, rbx
.fill:
    mov qword ptr [rdi], 10                     # MMUEXT_TLB_FLUSH_ALL
    add rdi, 24
    dec ecx
    jnz .fill
.again:
    mov rdi, rbx
    mov esi, 170
    xor edx, edx
    mov r10d, DOMID_SELF
    hypercall mmuext_op
    jmp .again
""",
    "page clearing": """
    lea rdi, [rip + text]
    call va_to_mfn
    mov ecx, 170
    mov rdi, rbx
.fill:
    mov qword ptr [rdi], 16                     # MMUEXT_CLEAR_PAGE
    mov [rdi + 8], rax
    add rdi, 24
    dec ecx
    jnz .fill
.again:
    mov rdi, rbx
    mov esi, 170
    xor edx, edx
    mov r10d, DOMID_SELF
    hypercall mmuext_op
    jmp .again
""",
    "page-table entries": """
.again:
    lea rdi, [rip + text]
    mov esi, PTE_P | PTE_A
    call remap
    lea rdi, [rip + text]
    mov esi, PTE_P | PTE_RW | PTE_A | PTE_D
    call remap
    jmp .again
""",
    "pinning": """
    lea rdi, [rip + text]
    call frame_of
    or rax, PTE_P | PTE_A
    lea rdi, [rip + l1]
    mov ecx, 512
    rep stosq
    lea rdi, [rip + l1]
    mov esi, PTE_P | PTE_A
    call remap
    lea rdi, [rip + l1]
    call frame_of
    or rax, PTE_P | PTE_RW | PTE_US | PTE_A
    lea rdi, [rip + l2]
    mov ecx, 512
    rep stosq
    lea rdi, [rip + l2]
    mov esi, PTE_P | PTE_A
    call remap
    lea rdi, [rip + l2]
    call va_to_mfn
    mov ecx, 85
    mov rdi, rbx
.fill:
    mov qword ptr [rdi], MMUEXT_PIN_L2_TABLE
    mov [rdi + 8], rax
    mov qword ptr [rdi + 24], MMUEXT_UNPIN_TABLE
    mov [rdi + 32], rax
    add rdi, 48
    dec ecx
    jnz .fill
.again:
    mov rdi, rbx
    mov esi, 170
    xor edx, edx
    mov r10d, DOMID_SELF
    hypercall mmuext_op
    must_succeed "pinning"
    jmp .again
""",
    "console": """
.again:
    mov rax, [rip + console_page]
    add dword ptr [rax + CONSOLE_out_prod], 2048
    mov edi, EVTCHNOP_send
    lea rsi, [rip + console_port]
    hypercall event_channel_op
    jmp .again
""",
    "debug console": """
.again:
    xor edi, edi
    mov esi, 16 * 4096
    lea rdx, [rip + text]
    hypercall console_io
    jmp .again
""",
    "store requests": """
.again:
    lea rdi, [rip + node]
    mov esi, 1
    call xs_write_number
    jmp .again
""",
    "store watches": """
    mov r12d, 128
.watch:
    call xs_begin
    lea rdi, [rip + node]
    call xs_text
    call xs_nul
    mov rdi, r12
    call xs_number
    call xs_nul
    mov edi, 4
    call xs_call
    dec r12d
    jnz .watch
.again:
    lea rdi, [rip + node]
    mov esi, 1
    call xs_write_number
    jmp .again
""",
    "events": """
    mov dword ptr [rip + words], 0
    mov edi, EVTCHNOP_bind_ipi
    lea rsi, [rip + words]
    hypercall event_channel_op
    must_succeed "bind_ipi"
    mov eax, [rip + words + 4]
    mov [rip + words], eax
    bind_port rax, nothing
    unmask_events
.again:
    mov edi, EVTCHNOP_send
    lea rsi, [rip + words]
    hypercall event_channel_op
    jmp .again
nothing:
    ret
""",
    "timers": """
    bind_port rax, nothing
    unmask_events
.again:
    call system_time
    mov rdi, rax
    call set_timer
    jmp .again
nothing:
    ret
""",
    "short sleeps": """
    bind_port rax, nothing
    mask_events
.again:
    call system_time
    lea rdi, [rax + 20000]
    call set_timer
    mov edi, SCHEDOP_block
    xor esi, esi
    hypercall sched_op
    jmp .again
nothing:
    ret
""",
    "sleeping through the ticks": """
    bind_port rax, nothing
.again:
    call system_time
    xor edx, edx
    mov ecx, 10000000
    div rcx
    cmp rdx, 9800000
    jb .again
    sub rcx, rdx
    call system_time
    lea rdi, [rax + rcx + 50000]
    call set_timer
    mov edi, SCHEDOP_block
    xor esi, esi
    hypercall sched_op
    jmp .again
nothing:
    ret
""",
    "changing code": """
.again:
    inc byte ptr [rip + patched + 1]
patched:
    mov al, 0
    lea rdi, [rip + text]
    mov byte ptr [rdi], 0xc3
    call rdi
    jmp .again
""",
}


class Beginning:
    """A console that keeps the first words only."""

    def __init__(self) -> None:
        self.data = b""

    def output(self, data: bytes) -> None:
        self.data = (self.data + data)[:100]


SLICE = 90_000_000
"""ns of machine time for each domain."""


def progress(attack: str | None, *, virtual: bool = True) -> tuple[int, int]:
    """How far the victim comes in a slice of machine time, or in two beside `attack`; the attacker's exits."""
    with machine(pages=2 * PAGES, virtual_time=virtual) as made:
        image = load_image(image_of(VICTIM), "victim")
        counter = next(symbol.va for symbol in image.symbols if symbol.name == "counter")
        victim = made.create(image, DomainConfig("victim", PAGES), console=Beginning())
        exits = 0
        if attack is not None:
            sink = Beginning()
            other = load_image(image_of(INCLUDES + START + ATTACKS[attack] + DATA), "attacker")
            attacker = made.create(other, DomainConfig("attacker", PAGES), console=sink)
        outcome = made.run(timeout_ns=SLICE * (1 if attack is None else 2))
        assert outcome is Outcome.TIMEOUT
        if attack is not None:
            assert attacker.alive and sink.data.startswith(b"ready"), sink.data
            exits = sum(made.dispatchers[attacker.domid].counts)
        made.dispatchers[victim.domid].load(victim.vcpus[0])
        return victim.memory.read_u64(counter), exits


if __name__ == "__main__":
    import sys
    import time

    for virtual in (True, False):
        alone, _ = progress(None, virtual=virtual)
        for name in sys.argv[1:] or ATTACKS:
            t = time.time()
            try:
                done, exits = progress(name, virtual=virtual)
                print(
                    f"{virtual} {name:30} {done / alone:.3f} exits {exits} {time.time() - t:.2f}s", flush=True
                )
            except Exception as e:
                print(name, repr(e)[:300], flush=True)
