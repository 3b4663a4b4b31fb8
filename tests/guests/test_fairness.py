# SPDX-License-Identifier: GPL-2.0-only
"""One domain's share of the machine, beside another that does its worst.

`victim` computes; `attacker` keeps the hypervisor busy in one way. Both have the same weight. The victim's
progress is compared with what it makes alone in half of the time.
"""

import gc
import tracemalloc

import pytest

from pyhv.abi.numbers import VcpuState
from pyhv.domain.config import DomainConfig
from pyhv.loader.elf import load_image
from pyhv.machine import Machine
from pyhv.sched.credit import Credit
from pyhv.testing.guest_machine import HEADER, PAGES, image_of, machine
from pyhv.until import Outcome

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
    "CPUID": """
.again:
    xor eax, eax
    cpuid
    jmp .again
""",
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
    lea rdi, [rip + node]                       # the same request for ever; what comes back is not looked at
    call xs_path
    mov edi, 1
    call xs_number
    mov dword ptr [rip + xs_header], XS_WRITE
    mov dword ptr [rip + xs_header + 12], 8
.again:
    mov rax, [rip + xs_page]
    mov ecx, [rax + XENSTORE_rsp_prod]
    mov [rax + XENSTORE_rsp_cons], ecx
    mov ecx, [rax + XENSTORE_req_prod]
    sub ecx, [rax + XENSTORE_req_cons]
    cmp ecx, XENSTORE_RING_SIZE - 24
    ja .notify
    lea rsi, [rip + xs_header]
    mov ecx, 16
    call xs_send
    lea rsi, [rip + xs_request]
    mov ecx, 8
    call xs_send
.notify:
    call xs_notify
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
change:
    inc byte ptr [rip + patched + 1]
patched:
    mov al, 0
    lea rdi, [rip + text]
    mov byte ptr [rdi], 0xc3
    call rdi
    jmp change
""",
}


class Beginning:
    """A console that keeps the first words only."""

    def __init__(self) -> None:
        self.data = b""

    def output(self, data: bytes) -> None:
        self.data = (self.data + data)[:100]


MILLISECOND = 1_000_000
PERIOD = 3 * MILLISECOND
"""The scheduler's period here: a tenth of the usual, to save time, and so are its other times."""
SLICE = 3 * PERIOD
"""Machine time of each domain in a run."""
LAG = PERIOD * 11 // 30
"""What the victim may be behind its share at the end: one tick of the scheduler, and its start."""
HOURS_OF_TRANSLATION = {"changing code"}
"""Virtual time counts the bytes of code, not its translation: these attacks are for real time only."""


class Attacker:
    """One of `ATTACKS` in a domain."""

    def __init__(self, made: Machine, attack: str) -> None:
        self._console = Beginning()
        image = load_image(image_of(INCLUDES + START + ATTACKS[attack] + DATA), "attacker")
        self.domain = made.create(image, DomainConfig("attacker", PAGES), console=self._console)

    def check(self) -> None:
        """It has begun and goes on."""
        assert self.domain.alive, self._console.data
        assert self._console.data in (b"ready\n", b"ready\n".ljust(100, b"\0")), self._console.data


class Pair:
    """The victim, and perhaps an attacker, on one machine; both have 4 MiB and the same weight."""

    def __init__(self, made: Machine, attack: str | None) -> None:
        self.machine = made
        image = load_image(image_of(VICTIM), "victim")
        self._counter = next(symbol.va for symbol in image.symbols if symbol.name == "counter")
        self.victim = made.create(image, DomainConfig("victim", PAGES), console=Beginning())
        self._attacker = Attacker(made, attack) if attack is not None else None

    def run(self, ns: int) -> None:
        """Let both run; neither ends."""
        assert self.machine.run(timeout_ns=ns) is Outcome.TIMEOUT
        if self._attacker is not None:
            self._attacker.check()

    def count(self) -> int:
        """How far the victim has come."""
        self.machine.residents[self.victim.domid].dispatcher.load(self.victim.vcpus[0])
        return self.victim.memory.read_u64(self._counter)


def progress(attack: str | None, slices: int) -> int:
    """How far the victim comes in so many slices of virtual time."""
    with machine(pages=2 * PAGES, scheduler=Credit(PERIOD, ratelimit=PERIOD // 30)) as made:
        pair = Pair(made, attack)
        pair.run(slices * SLICE)
        return pair.count()


@pytest.fixture(scope="module")
def alone() -> int:
    """How far the victim comes in one slice if nobody else is there."""
    return progress(None, 1)


@pytest.mark.promise("T-7")
@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in HOURS_OF_TRANSLATION])
def test_nobody_takes_more_than_its_share(attack: str, alone: int) -> None:
    assert progress(attack, 2) >= alone * (SLICE - LAG) / SLICE


@pytest.mark.promise("T-7")
@pytest.mark.parametrize("attack", ["TLB flushes", "page clearing"])
def test_what_is_lost_does_not_grow(attack: str, alone: int) -> None:
    assert progress(attack, 6) >= alone * (3 * SLICE - LAG) / SLICE


@pytest.mark.promise("T-8")
@pytest.mark.parametrize(
    "attack", ["pinning", "multicalls", "store watches", "changing code", "hypercalls", "CPUID"]
)
def test_real_time_is_shared_too(attack: str) -> None:
    """Handlers run while their guest is charged: the clock is the host's, so whatever they do is counted."""
    with machine(pages=2 * PAGES, virtual_time=False) as made:
        pair = Pair(made, attack)
        began = made.now()
        pair.run(600 * MILLISECOND)
        running = pair.victim.vcpus[0].runstate.recorded().time[VcpuState.RUNNING]
        assert running >= 0.4 * (made.now() - began)


@pytest.mark.promise("L-23")
@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in HOURS_OF_TRANSLATION])
def test_no_attack_takes_the_hosts_memory(attack: str) -> None:
    """What an attack does for ever, it does in the same memory."""
    with machine(pages=2 * PAGES) as made:
        attacker = Attacker(made, attack)
        made.run(timeout_ns=1 * MILLISECOND)
        tracemalloc.start()
        try:
            made.run(timeout_ns=1 * MILLISECOND)
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            made.run(timeout_ns=2 * MILLISECOND)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        attacker.check()
        assert grown < 16 << 10
