# SPDX-License-Identifier: GPL-2.0-only
"""Stores to watched frames reach what was translated of them, through whatever mapping they come."""

from collections.abc import Iterator

import pytest
from bare_engine import ALIAS, CODE, CODE_2, DATA, L1, Bare, Exit, at

from pyhv.abi.x86 import PTE_NX
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble

OFFSET = 0x100
STORES = {
    "byte": "mov byte ptr [r12], 2",
    "dword": "mov dword ptr [r12], 2",
    "across the instruction's start": "mov rax, 0xc300000002b89090; mov [r12 - 3], rax",
    "locked": "lock inc dword ptr [r12]",
    "exchanged": "mov al, 2; xchg [r12], al",
    "string": f"mov rdi, r12; mov rsi, {at(DATA)}; movsb",
    "sixteen bytes": f"mov rsi, {at(DATA)}; movups xmm0, [rsi + 8]; movups [r12 - 9], xmm0",
    "after another": f"mov rax, {at(ALIAS, 0xF00)}; mov byte ptr [rax], 1; mov byte ptr [r12], 2",
}


CLOCKS = {"real time": False, "virtual time": True}


@pytest.fixture(params=CLOCKS)
def bare(request: pytest.FixtureRequest) -> Iterator[Bare]:
    bare = Bare(count_blocks=CLOCKS[request.param], tuned=False)
    assert bare.engine.watch is not None
    bare.engine.watch.add((CODE, CODE))
    yield bare
    bare.close()


@pytest.fixture(params=[PTE_NX, 0], ids=["no-execute alias", "executable alias"])
def alias(request: pytest.FixtureRequest, bare: Bare) -> None:
    bare.ram.writable.q[L1 << 9 | ALIAS] |= request.param


def put_function(bare: Bare, value: int) -> None:
    """mov eax, VALUE; ret"""
    bare.write(b"\xb8" + value.to_bytes(4, "little") + b"\xc3", at(CODE, OFFSET))


@pytest.mark.promise("C-14")
@pytest.mark.parametrize("before", ["", "mov byte ptr [r12 + 0x200], 1"], ids=["", "after a store"])
@pytest.mark.parametrize("store", STORES)
@pytest.mark.usefixtures("alias")
def test_a_store_reaches_translations(bare: Bare, store: str, before: str) -> None:
    put_function(bare, 1)
    bare.set_data(2)
    image = bytes(bare.ram.raw[at(CODE, OFFSET - 8) : at(CODE, OFFSET + 8)])
    bare.ram.writable.raw[at(DATA, 8) : at(DATA, 24)] = image[:9] + b"\x02" + image[10:]
    exit_ = bare.run(
        f"mov r12, {at(ALIAS, OFFSET + 1)}; mov r13, {at(CODE, OFFSET)}; {before}; call r13; mov ebp, eax;"
        f"{STORES[store]}; call r13; shl ebp, 8; or eax, ebp; ud2",
        at(CODE_2),
    )
    assert exit_.kind == "invalid"
    assert bare.q[v.RAX] == 0x102


@pytest.mark.usefixtures("alias")
def test_a_block_that_overwrites_its_own_rest(bare: Bare) -> None:
    head = assemble(f"mov r12, {at(ALIAS)}\nmov byte ptr [r12 + 0x7f], 2\n", at(CODE))
    target = len(head) + 1
    head = assemble(f"mov r12, {at(ALIAS)}\nmov byte ptr [r12 + {target}], 2\n", at(CODE))
    assert len(head) + 1 == target
    bare.run(b"\x90" * 16 + b"\x0f\x0b", at(CODE))  # so that the TLB knows the page
    bare.run(head + b"\xb8\x01\x00\x00\x00\x0f\x0b", at(CODE))  # mov eax, 1; ud2
    assert bare.q[v.RAX] == 2


@pytest.mark.usefixtures("alias")
def test_frames_can_be_watched_from_within_an_exit(bare: Bare) -> None:
    """As the hypervisor does: from a hypercall on, stores to other frames are seen."""
    put_function(bare, 1)
    watch = bare.engine.watch
    assert watch is not None

    def handle(seen: Exit) -> bool:
        if seen.kind != "syscall":
            return False
        for _ in range(50):
            watch.replace([(DATA, DATA)])
            watch.replace([(ALIAS, ALIAS), (CODE, CODE)])
        bare.engine.flush_tlb()
        return True

    bare.sink.handle = handle
    watch.replace([])
    bare.run(
        f"mov r12, {at(ALIAS, OFFSET + 1)}; mov r13, {at(CODE, OFFSET)}; call r13; mov byte ptr [r12 + 9], 1;"
        "syscall; mov byte ptr [r12 + 9], 1; mov byte ptr [r12], 2; call r13; ud2",
        at(CODE_2),
    )
    assert bare.q[v.RAX] == 2


def test_a_tuned_engine_has_no_need_of_it() -> None:
    bare = Bare(tuned=True)
    assert (bare.engine.watch is None) == (bare.engine.block is not None)
    bare.close()
