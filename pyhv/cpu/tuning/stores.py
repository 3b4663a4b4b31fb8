# SPDX-License-Identifier: GPL-2.0-only
"""Stores are watched while, and only while, a frame has translations, through whichever page they come.

A store to code must drop the translations of that code (Intel SDM vol. 3, 11.6: self-modifying code). The
emulator sees such a store because the page's entry in its TLB is marked not dirty, which sends it down the
slow path. The library marks by virtual page: too much, as each store to a page that is executable in the
guest's tables stays slow for ever; and too little, as another page that leads to the same frame is not
marked. Here it goes by frame. Each engine has a word for each frame of RAM, and

    a frame has translations  =>  its word is not zero (but for the level)
    its word is not zero      =>  no entry of the TLB, main or victim, in whichever mode of the MMU, lets a
                                  store to the frame pass unseen

    library's function                 is called when                        what is done instead, or besides
    tlb_protect_code                   a frame gets its first translation    word set, all entries marked
    tlb_unprotect_code                 it has lost the last one              word cleared
    tb_flush                           all translations are dropped          all words cleared
    tlb_set_page_with_attrs            a page enters the TLB (marked)        unmarked if the word is clear
    tb_invalidate_phys_page_fast       a store goes down the slow path       below
    tlb_set_dirty                      ... and has changed no code, alias    nothing
    tlb_reset_dirty_by_vaddr           a block was translated                nothing

A store that finds the word clear unmarks the frame's entries: it was the last slow one. One that finds it set
drops the translations that it touches, and counts. A frame that had code and became data would stay slow as
long as translations are left in it; so after a number of slow stores they are all dropped. If there is code
again, it is a page of both, and next time that takes twice as many. The word is that count, and above it the
number of times that it has run out.
"""

import mmap
from typing import Final

from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.form import OF_CPU, Facts, Patch, Stub, Word, find_block
from pyhv.cpu.tuning.stores_proof import prove_stores

PATIENCE: Final = 255
"""Slow stores to a frame, after which all its translations are dropped, the first time."""
MOST_DOUBLINGS: Final = 8
COUNT: Final = 0x00FF_FFFF
"""The part of a frame's word that is not zero while it is watched."""
LEVEL: Final = 1 << 24
_PAGE_BITS: Final = 12


def _make_words(facts: Facts) -> int:
    return facts.allocate(facts.ram.frames * 4)


# void tlb_protect_code(uc, address)
_PROTECT: Final = f"""
    {find_block("rdi")}
    cmp rsi, [rax + {{word.ram_size}}]
    jae next
    mov rdx, rsi
    shr rdx, {_PAGE_BITS}
    shl rdx, 2
    add rdx, [rax + {{word.watched}}]
    mov r8d, [rdx]
    mov ecx, r8d
    shr ecx, 24
    mov r9d, {PATIENCE}
    shl r9d, cl
    mov ecx, r8d
    and ecx, {LEVEL * 0xFF}
    or r9d, ecx
    mov [rdx], r9d
    test r8d, {COUNT}
    jnz was_watched
    and rsi, -{mmap.PAGESIZE}
    add rsi, [rax + {{word.ram_address}}]
    mov edx, {mmap.PAGESIZE}
    mov rdi, [rdi + {layout.UC_CPU}]
    movabs rax, {{real.tlb_reset_dirty}}
    jmp rax
was_watched:
    ret
"""

# void tlb_unprotect_code(uc, address)
_UNPROTECT: Final = f"""
    {find_block("rdi")}
    cmp rsi, [rax + {{word.ram_size}}]
    jae next
    shr rsi, {_PAGE_BITS}
    mov rax, [rax + {{word.watched}}]
    and dword ptr [rax + 4 * rsi], {LEVEL * 0xFF}
    ret
"""

# void tb_flush(cpu)
_FLUSH: Final = f"""
    {find_block(OF_CPU)}
    push rbx
    mov rbx, rax
    movabs rax, {{next}}
    call rax
    mov rdi, [rbx + {{word.watched}}]
    mov rcx, [rbx + {{word.ram_size}}]
    shr rcx, {_PAGE_BITS}
    pop rbx
each:
    cmp dword ptr [rdi + 4 * rcx - 4], 0
    je clear
    mov dword ptr [rdi + 4 * rcx - 4], 0
clear:
    dec rcx
    jnz each
    ret
"""

# void tlb_set_page_with_attrs(cpu, page, address, attributes, prot, mode, size)
_FILL: Final = f"""
    test r8b, {layout.PAGE_WRITE}
    jz next
    {find_block(OF_CPU)}
    cmp rdx, [rax + {{word.ram_size}}]
    jae next
    mov r10, [rax + {{word.watched}}]
    mov r11, rdx
    shr r11, {_PAGE_BITS}
    test dword ptr [r10 + 4 * r11], {COUNT}
    jnz next
    push rbx
    push r12
    push r13
    mov rbx, [rdi + {layout.CPU_ENV}]
    mov r12, rsi
    mov r13d, r9d
    sub rsp, 8
    push qword ptr [rsp + 40]
    movabs rax, {{next}}
    call rax
    add rsp, 16
    and r12, -{mmap.PAGESIZE}
    shl r13, {layout.TLB_STRIDE.bit_length() - 1}
    mov rax, r12
    shr rax, {_PAGE_BITS - layout.ENTRY_BITS}
    and rax, [rbx + r13 + {layout.ENV_TLB}]
    add rax, [rbx + r13 + {layout.ENV_TLB + 8}]
    mov rcx, r12
    or rcx, {layout.NOT_DIRTY}
    cmp [rax + {layout.ENTRY_WRITE}], rcx
    jne filled
    mov [rax + {layout.ENTRY_WRITE}], r12
filled:
    pop r13
    pop r12
    pop rbx
    ret
"""

# void tb_invalidate_phys_page_fast(uc, pages, address, size, return address)
_STORE: Final = f"""
    {find_block("rdi")}
    cmp rdx, [rax + {{word.ram_size}}]
    jae next
    mov r9, rdx
    shr r9, {_PAGE_BITS}
    shl r9, 2
    add r9, [rax + {{word.watched}}]
    mov r10d, [r9]
    and r10d, {COUNT}
    jz unwatched
    cmp r10d, 1
    je patience_is_over
    dec dword ptr [r9]
    jmp next

patience_is_over:
    push rbx
    push r12
    push r13
    push r14
    sub rsp, 8
    mov rbx, rdi
    mov r12, rdx
    mov r13, r8
    mov r14, r9
    movabs rax, {{next}}
    call rax
    test r13, r13
    jz not_now
    mov rdi, [rbx + {layout.UC_TCG}]
    mov rsi, r13
    movabs rax, {{real.tcg_tb_lookup}}
    call rax
    test rax, rax
    jz not_now
    mov rsi, r12
    and rsi, -{mmap.PAGESIZE}
    cmp [rax + {layout.TB_PAGES[0]}], rsi
    je not_now
    cmp [rax + {layout.TB_PAGES[1]}], rsi
    je not_now
    cmp dword ptr [r14], {LEVEL * MOST_DOUBLINGS}
    jae drop
    add dword ptr [r14], {LEVEL}
drop:
    mov rdi, rbx
    lea rdx, [rsi + {mmap.PAGESIZE}]
    movabs rax, {{real.tb_invalidate_phys_range}}
    call rax
not_now:
    add rsp, 8
    pop r14
    pop r13
    pop r12
    pop rbx
    ret

unwatched:
    and rdx, -{mmap.PAGESIZE}
    mov r8, [rdi + {layout.UC_CPU}]
    mov r8, [r8 + {layout.CPU_ENV}]
    lea r9, [r8 + {layout.ENV_TLB}]
    lea r10, [r8 + {layout.ENV_VICTIMS}]
    lea r11, [r8 + {layout.ENV_TLB + layout.TLB_STRIDE * layout.MMU_MODES}]
each_mode:
    mov rcx, [r9 + 8]
    mov rsi, [r9]
    lea rsi, [rcx + rsi + {1 << layout.ENTRY_BITS}]
    call unmark
    mov rcx, r10
    lea rsi, [r10 + {layout.VICTIM_ENTRIES << layout.ENTRY_BITS}]
    call unmark
    add r9, {layout.TLB_STRIDE}
    add r10, {layout.VICTIMS_STRIDE}
    cmp r9, r11
    jne each_mode
    ret
unmark:
    cmp [rcx + {layout.ENTRY_PADDR}], rdx
    jne other
    mov eax, [rcx + {layout.ENTRY_WRITE}]
    and eax, {mmap.PAGESIZE - 1}
    cmp eax, {layout.NOT_DIRTY}
    jne other
    xor dword ptr [rcx + {layout.ENTRY_WRITE}], {layout.NOT_DIRTY}
other:
    add rcx, {1 << layout.ENTRY_BITS}
    cmp rcx, rsi
    jne unmark
    ret
"""

_NOTHING: Final = f"""
    {find_block(OF_CPU)}
    ret
"""

STORES: Final = Patch(
    name="stores",
    promise="stores are watched while, and only while, a frame has translations, through whichever page",
    stubs=(
        Stub("tlb_protect_code", _PROTECT),
        Stub("tlb_unprotect_code", _UNPROTECT),
        Stub("tb_flush", _FLUSH),
        Stub("tlb_set_page_with_attrs", _FILL),
        Stub("tb_invalidate_phys_page_fast", _STORE),
        Stub("tlb_set_dirty", _NOTHING),
        Stub("tlb_reset_dirty_by_vaddr", _NOTHING),
    ),
    words=(Word("watched", _make_words),),
    proof=prove_stores,
)
