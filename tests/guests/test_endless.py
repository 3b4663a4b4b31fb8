# SPDX-License-Identifier: GPL-2.0-only
"""Guests that try to keep the hypervisor busy for ever: they only spend their own time.

One page, mapped all over half a terabyte of addresses, is an endless list of arguments. Whatever is done
with it, `ticker` beside it ticks on, and the machine's time budget still ends the run.
"""

import pytest
from conftest import BenchMaker

from pyhv.until import Outcome

PRELUDE = """
# endless - feeds one page to a hypercall for ever
.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "paging.inc"
.set ALIAS, 3 << 39         # L4 slot 3: every page of it is `one`

# 512 entries of `table` lead to `page`; then `table` becomes read-only, so that it can be linked
.macro fill_all table, page, flags
    lea rdi, [rip + \\page]
    call frame_of
    mov rcx, \\flags
    or rax, rcx
    lea rdi, [rip + \\table]
    mov ecx, 512
    rep stosq
    lea rdi, [rip + \\table]
    mov esi, PTE_P|PTE_A
    call remap
    must_succeed "protect"
.endm

.text
_start:
    kernel_entry
    call traps_init
    fill_all l1, one, PTE_P|PTE_RW|PTE_US|PTE_A|PTE_D|PTE_NX
    fill_all l2, l1, PTE_P|PTE_RW|PTE_US|PTE_A
    fill_all l3, l2, PTE_P|PTE_RW|PTE_US|PTE_A
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    mov esi, 3
    call entry_address
    mov rbx, rax
    lea rdi, [rip + l3]
    call frame_of
    mov rsi, rax
    or rsi, PTE_P|PTE_RW|PTE_US|PTE_A
    mov rdi, rbx
    call set_entry
    must_succeed "alias"
    print "ready\\n"
    lea rdx, [rip + one]
"""

POSTLUDE = """
    print "came back\\n"
    succeed
.bss
.balign PAGE_SIZE
l1: .zero PAGE_SIZE
l2: .zero PAGE_SIZE
l3: .zero PAGE_SIZE
one: .zero PAGE_SIZE
"""

WAYS = {
    "set_trap_table": """
    lea rax, [rip + puts]
    mov ecx, 256
.fill:
    mov byte ptr [rdx], 40
    mov [rdx + 8], rax
    add rdx, 16
    dec ecx
    jnz .fill
    mov rdi, ALIAS
    hypercall set_trap_table
    """,
    "multicall": """
    mov ecx, 64
.fill:
    mov qword ptr [rdx], 17     # xen_version
    add rdx, 64
    dec ecx
    jnz .fill
    mov rdi, ALIAS
    mov esi, 0x7fffffff
    hypercall multicall
    """,
    "mmuext_op": """
    mov ecx, 512                # an operation is three words: let each word be TLB_FLUSH_LOCAL
.fill:
    mov qword ptr [rdx], 6
    add rdx, 8
    dec ecx
    jnz .fill
    mov rdi, ALIAS
    mov esi, 0x7fffffff
    xor edx, edx
    mov r10d, DOMID_SELF
    hypercall mmuext_op
    """,
    "console_io": """
.again:                         # 4 GiB of text are not quite endless
    mov edi, 0
    mov esi, 0xffffffff
    mov rdx, ALIAS
    hypercall console_io
    jmp .again
    """,
    "page faults": """
    lea rdi, [rip + table]
    hypercall set_trap_table
    mov rsp, ALIAS + (1 << 39) - 64
    mov rax, [0x7000000000]
.data
table:
    .byte 14, 4
    .short 0xe033
    .long 0
    .quad 0x7000000000          # a #PF handler that is not mapped
    .quad 0, 0
.text
    """,
}


@pytest.mark.promise("T-5", "T-12")
@pytest.mark.parametrize("virtual", [True, False], ids=["virtual", "real"])
@pytest.mark.parametrize("way", list(WAYS))
def test_only_its_own_time(bench: BenchMaker, way: str, virtual: bool) -> None:
    machine = bench(virtual=virtual)
    machine.add(PRELUDE + WAYS[way] + POSTLUDE, name="endless")
    machine.add("ticker")
    outcome = machine.run(seconds=0.2 if virtual else 1)
    assert "SUCCESS" in machine.consoles[1].text
    assert "ready" in machine.consoles[0].text
    assert "came back" not in machine.consoles[0].text
    assert outcome is Outcome.TIMEOUT
    assert machine.machine.audit() == []


@pytest.mark.promise("T-5")
def test_a_continued_list_counts_all_that_was_done(bench: BenchMaker) -> None:
    """A list that gives way in between still reports all its operations in `done`."""
    body = """
    mov ecx, 512                # an operation is three words: let each word be TLB_FLUSH_LOCAL
.fill:
    mov qword ptr [rdx], 6
    add rdx, 8
    dec ecx
    jnz .fill
    mov rdi, ALIAS
    mov esi, 100
    lea rdx, [rip + count]
    mov r10d, DOMID_SELF
    hypercall mmuext_op
    must_succeed "mmuext_op"
    cmp dword ptr [rip + count], 100
    jne .wrong
    print "all of them\\n"
.wrong:
.data
.balign 8
count: .quad 0
.text
    """
    machine = bench()
    machine.machine.clock.work = lambda ns: True  # type: ignore[method-assign]  # every look is one too late
    machine.add(PRELUDE + body + POSTLUDE, name="patient")
    assert machine.run(seconds=5) is Outcome.ENDED
    assert "all of them" in machine.consoles[0].text
