# SPDX-License-Identifier: GPL-2.0-only
"""How engines that are not tuned find instructions that are refused: in each block, once, before it is
executed. (That they refuse what tuned ones refuse is tested in tests/unit/test_opcodes.py.)"""

import itertools
import random
from collections.abc import Iterator

import capstone
import pytest
from bare_engine import ALIAS, CODE, CODE_2, DATA, Bare, Exit, at
from hypothesis import given
from hypothesis import strategies as st

from pyhv.abi.x86 import FLAT_RING3_CS64, FLAT_RING3_DS
from pyhv.cpu import vmcb as v
from pyhv.cpu.debugunit import MET_BREAKPOINT, MET_IRET
from pyhv.cpu.lengths import length
from pyhv.cpu.opcodes import Verdict, examine
from pyhv.cpu.screen import Screen, first_refused, suspicion
from pyhv.cpu.tuning.gate import unsuitable

REFUSED = [
    *(b"\xc5\xf8\x58\xc0", b"\xc4\xe2\x78\xf2\xc0", b"\x8f\xc8"),
    *(b"\xc7\xf8\0\0\0\0", b"\x0f\x01\xd6"),
    *(b"\xf0\x89\xc0", b"\x66\xf0\x89\xc0", b"\xf0\x01\xc0", b"\xf0\x83\x3b\x01", b"\xf0\x0f\xab\xc3"),
    *(b"\x66\x0f\x79\xc0", b"\xf2\x0f\x2b\x03", b"\x66\x0f\x12\xc1", b"\x0f\x50\x03", b"\x0f\x71\x13\x01"),
    *(b"\xf3\x0f\xae\x13", b"\x66\xf3\x0f\x28\xc1", b"\x66\xf2\x0f\x38\x00\xc1"),
]
ALLOWED = [
    *(b"\x90", b"\xf0\x01\x03", b"\xf3\x0f\x10\xc1", b"\x66\x0f\x6f\x03", b"\xf3\xa4"),
    *(b"\x48\x83\xc4\x08", b"\x83\xc5\xf0", b"\x0f\xb6\xc5", b"\xf6\xc4\xc5"),
    *(b"\xc7\x44\x24\x08\x01\x02\x03\x04", b"\x0f\x1f\x84\x00\xc5\xf8\x58\xc0", b"\xc8\xf0\xc5\x00"),
    *(b"\x68\xc5\xf8\x58\xc0", b"\x6a\x8f", b"\x66\xb8\xf0\x89"),
    *(b"\x48\xb8\xf0\x89\xc0\xc5\xf8\x58\xc0\xf0", b"\xa1\xf0\x89\xc0\xc5\xf8\x58\xc0\xf0"),
]
"""Some of them with bytes that would be refused if they began an instruction."""
BITS = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32}


# -- finding ----------------------------------------------------------------------------------------------


@pytest.mark.promise("C-12")
@given(st.lists(st.sampled_from(ALLOWED), max_size=12), st.sampled_from(REFUSED), st.binary(max_size=20))
def test_the_first_that_is_refused_is_found(before: list[bytes], refused: bytes, behind: bytes) -> None:
    code = b"".join(before)
    found = first_refused(code + refused + behind, len(code) + 1, 64)
    assert found is not None
    assert found[0] == len(code)
    assert examine((code + refused + behind)[len(code) :][: found[1]]) is Verdict.REFUSED
    assert first_refused(code + refused + behind, len(code), 64) is None


@given(st.binary(max_size=20), st.integers(0, 25), st.sampled_from([64, 32]))
def test_a_length_leads_on(code: bytes, start: int, width: int) -> None:
    """Whatever the code, also behind its end."""
    assert 1 <= length(code, width, start) <= 30


@given(st.binary(min_size=1, max_size=15), st.sampled_from([64, 32]))
def test_whatever_is_refused_is_suspected(code: bytes, width: int) -> None:
    if examine(code, width) is Verdict.REFUSED:
        assert suspicion(width).search(code) is not None


@pytest.mark.parametrize("width", [64, 32])
def test_every_encoding_that_is_refused_is_suspected(width: int) -> None:
    escapes, prefixes = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"), (b"", b"\x66", b"\xf3", b"\xf2", b"\xf0")
    for escape, opcode, modrm, prefix in itertools.product(escapes, range(256), range(0, 256, 8), prefixes):
        code = prefix + escape + bytes([opcode, modrm, 0, 0, 0, 0])
        if examine(code, width) is Verdict.REFUSED:
            assert suspicion(width).search(code) is not None, code.hex()


@pytest.mark.parametrize("width", [64, 32])
def test_lengths_are_those_of_another_decoder(width: int) -> None:
    """But for what ends a block, where it makes no difference, and what is always undefined."""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, BITS[width])
    decoder.detail = True
    chance = random.Random(width)
    compared = 0
    for _ in range(30_000):
        first = (0x0F, 0x66, 0x67, 0x48, 0xF3, chance.randrange(256))
        code = bytes([chance.choice(first), chance.choice(first), *chance.randbytes(14)])
        found = next(decoder.disasm(code, 0, 1), None)
        if found is None or examine(code, width) is Verdict.REFUSED:
            continue
        ends = {
            capstone.CS_GRP_JUMP,
            capstone.CS_GRP_CALL,
            capstone.CS_GRP_RET,
            capstone.CS_GRP_BRANCH_RELATIVE,
        }
        if not ends & set(found.groups) and found.mnemonic not in ("ud0", "ud1"):
            assert length(code, width) == found.size, f"{code.hex()}: {found.mnemonic} {found.op_str}"
            compared += 1
    assert compared > 15_000
    assert length(b"\x66\xb8\x01", width) > 3


# -- in an engine -----------------------------------------------------------------------------------------


@pytest.fixture
def plain() -> Iterator[Bare]:
    made = Bare(count_blocks=True, tuned=False)
    yield made
    made.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The blocks that are looked at from now on: start and size."""
    seen: list[tuple[int, int]] = []
    look_at = Screen._look_at

    def noted(screen: Screen, start: int, size: int) -> None:
        seen.append((start, size))
        look_at(screen, start, size)

    monkeypatch.setattr(Screen, "_look_at", noted)
    return seen


def test_a_block_is_looked_at_once(plain: Bare, looks: list[tuple[int, int]]) -> None:
    seen = plain.run("mov ecx, 1000; again:; inc rax; dec ecx; jnz again; ud2")
    assert seen.kind == "invalid"
    assert len(looks) == 3
    plain.q[v.RIP] = at(CODE)
    assert plain.go() == seen
    assert len(looks) == 3


def test_the_first_block_of_an_engine_is_looked_at(plain: Bare) -> None:
    assert plain.run(b"\x90\xf0\x89\xc0") == Exit("invalid", at(CODE, 1))


def test_the_emulator_divides_code_in_the_same_places(plain: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random instructions that another decoder knows and that do not end a block: to the end of the block."""
    chance, decoder = random.Random(3), capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    blocks: list[bytes] = []

    def translated(screen: Screen, start: int, size: int) -> None:
        blocks.append(screen._code(start, size + 15)[: size + 15] + bytes([size]))

    monkeypatch.setattr(Screen, "translated", translated)
    for _ in range(150):
        code = b""
        while len(code) < 200:
            one = bytes([chance.choice((0x48, 0x66, 0x0F, chance.randrange(256))), *chance.randbytes(14)])
            found = next(decoder.disasm(one, 0, 1), None)
            if found is None or examine(one) is not Verdict.RUNS or found.groups:
                continue
            if found.mnemonic != "test":  # its second encoding is undefined to the emulator
                code += one[: found.size]
        plain.run(code + b"\x0f\x0b")
    assert sum(code[-1] for code in blocks) > 8_000
    for *start, size in blocks.copy():
        offset = 0
        while offset < size:
            last, offset = offset, offset + length(bytes(start), 64, offset)
        if offset != size:  # an undefined one is not read to its end
            assert plain.run(bytes(start[last:])) == Exit("invalid", at(CODE)), bytes(start[:size]).hex()


def test_memory_is_as_it_was(plain: Bare) -> None:
    """Also if the engine is stopped before it has translated anything."""
    code = b"\x90\xf0\x01\xc0\x0f\x0b"
    assert plain.run(code) == Exit("invalid", at(CODE, 1))
    assert plain.ram.raw[at(CODE) : at(CODE, 6)].tobytes() == code
    screen = plain.engine._screen
    assert screen is not None
    plain.engine.invalidate_code(CODE)
    screen.translated(at(CODE), len(code))
    assert screen.again()
    assert plain.ram.raw[at(CODE) : at(CODE, 6)].tobytes() == b"\x90\x3e\x3e\xf1\x0f\x0b"
    assert not screen.again()
    assert plain.ram.raw[at(CODE) : at(CODE, 6)].tobytes() == code


@pytest.mark.promise("C-12")
@pytest.mark.parametrize("page", [CODE_2, ALIAS], ids=["the page itself", "another page"])
def test_code_that_is_overwritten_is_looked_at_again(plain: Bare, page: int) -> None:
    """MOV becomes LOCK MOV by a store, and again MOV: through whichever page."""
    assert plain.engine.watch is not None
    frame = CODE_2 if page == CODE_2 else CODE
    plain.engine.watch.add((frame, frame))
    function = at(frame, 0x800)
    plain.ram.writable.raw[function : function + 4] = b"\x90\x89\xc0\xc3"
    code = f"""
        mov edi, {function}; mov esi, {at(page, 0x800)}
        call rdi; mov byte ptr [rsi], 0xf0; inc r8
        call rdi; mov byte ptr [rsi], 0x90; inc r8
        call rdi; inc r8; ud2
    """
    plain.q[v.R8] = 0
    assert plain.run(code) == Exit("invalid", function)
    assert plain.q[v.R8] == 1
    plain.q[v.RIP] = function + 3
    assert plain.go().kind == "invalid"
    assert plain.q[v.R8] == 3


def test_what_the_hypervisor_writes_is_looked_at(plain: Bare) -> None:
    for code, expected in ((b"\x90\x89\xc0", 3), (b"\xf0\x89\xc0", 0), (b"\x90\x89\xc0", 3)):
        assert plain.run(code + b"\x0f\x0b") == Exit("invalid", at(CODE, expected))


def test_the_same_bytes_in_either_width(plain: Bare) -> None:
    """C5 /r is VEX in 64-bit code, LDS in 32-bit code, of the same page in turns."""
    code = b"\x90\xc5\x03\x0f\x0b"
    plain.set_data(0)
    for _ in range(2):
        plain.vmcb.set_segment(v.CS, FLAT_RING3_CS64, 0, 0xFFFF_FFFF, 0x00AF_FB00)
        plain.ring(3)
        assert plain.run(code) == Exit("invalid", at(CODE, 1))
        plain.vmcb.set_segment(v.CS, 0x23, 0, 0xFFFF_FFFF, 0x00CF_FB00)
        plain.vmcb.set_segment(v.DS, FLAT_RING3_DS, 0, 0xFFFF_FFFF, 0x00CF_F300)
        plain.vmcb.d[v.HFLAGS] = v.HF_BASE64 & ~v.HF_CS64 | 3
        plain.q[v.RIP] = at(CODE)
        assert plain.go() == Exit("invalid", at(CODE, 3))


@pytest.mark.promise("P-4")
@pytest.mark.skipif(bool(unsuitable()), reason="the engine cannot be tuned here")
@pytest.mark.parametrize("before", [0, 1, 7])
@pytest.mark.parametrize("refused", REFUSED, ids=bytes.hex)
def test_a_refusal_costs_what_it_costs_a_tuned_engine(before: int, refused: bytes) -> None:
    """Of the byte budget: virtual time is the same."""
    left = []
    for tuned in (True, False):
        bare = Bare(count_blocks=True, tuned=tuned)
        assert bare.engine.budget is not None
        assert bare.run(b"\x90" * before + refused + b"\x90" * 20).rip == at(CODE, before)
        left.append(bare.engine.budget.left[0])
        bare.close()
    assert left[0] == left[1] < 1 << 40


def test_a_stop_between_the_two_translations_loses_nothing(plain: Bare) -> None:
    """The budget ends at each block: the guest is at the refused instruction when it gets there."""
    plain.write(b"\xff\xc0\xeb\x00" * 3 + b"\xff\xc0\xf0\x89\xc0")
    plain.q[v.RIP], plain.q[v.RAX], plain.q[v.RBX] = at(CODE), 0, at(DATA)
    plain.sink.exits.clear()
    assert plain.engine.budget is not None
    for _ in range(100):
        plain.engine.budget.left[0] = 4
        plain.engine.run()
        if plain.sink.exits:
            break
    assert plain.sink.exits == [Exit("invalid", at(CODE, 14))]
    assert plain.q[v.RAX] == 4


# -- stops -------------------------------------------------------------------------------------------------


def stop_at(bare: Bare, *addresses: int) -> None:
    assert bare.engine.debug_unit is not None
    bare.engine.debug_unit.settle(addresses, data=False)


def test_a_stop_is_an_exit_before_its_instruction(plain: Bare) -> None:
    """And before IRET, but not where an instruction only contains the byte of one, nor in its middle."""
    code = b"\x90\xb8\xcf\xcf\xcf\xcf\xff\xc0\x48\xcf"
    unit = plain.engine.debug_unit
    assert unit is not None
    for address, expected, cause in (
        (at(CODE, 6), at(CODE, 6), MET_BREAKPOINT),
        (at(CODE), at(CODE), MET_BREAKPOINT),
        (at(CODE, 3), at(CODE, 8), MET_IRET),
    ):
        stop_at(plain, address)
        seen = plain.run(code)
        assert (seen.kind, seen.vector, seen.rip) == ("exception", 1, expected)
        assert unit.cause() == cause
        assert plain.ram.raw[at(CODE) : at(CODE, len(code))] == code
        unit.close()
        plain.run(b"\x90")


def test_a_step_goes_past_a_stop(plain: Bare) -> None:
    stop_at(plain, at(CODE, 1))
    plain.write(b"\x90\xff\xc0\x90")
    for _ in range(2):
        plain.q[v.RIP], plain.q[v.RAX] = at(CODE), 6
        assert plain.go().rip == at(CODE, 1)
        plain.vmcb.d[v.HFLAGS] |= v.HF_TF
        assert (plain.go().rip, plain.q[v.RAX]) == (at(CODE, 3), 7)
        plain.vmcb.d[v.HFLAGS] &= ~v.HF_TF


def test_a_stop_in_a_block_that_cannot_be_fetched_to_its_end(plain: Bare) -> None:
    """Three bytes of the last instruction are on a page that is not there; others look like IRET."""
    end = at(DATA)
    plain.ram.writable.raw[end - 7 : end] = b"\x90\xb0\xcf\xff\xc0\xb8\xcf"
    for stop, expected in ((end - 4, (1, end - 4)), (end + 0x100, (14, end - 7))):
        stop_at(plain, stop)
        plain.q[v.RIP] = end - 7
        seen = plain.go()
        assert (seen.vector, seen.rip) == expected
        assert plain.engine.debug_unit is not None
        plain.engine.debug_unit.close()
        plain.engine.invalidate_code(CODE_2)
