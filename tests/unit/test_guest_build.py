# SPDX-License-Identifier: GPL-2.0-only
"""The builder of guest kernels: source text, encodings, ELF image, messages, and the built-in kernels."""

import contextlib
import io
from pathlib import Path

import pytest
from capstone import CS_ARCH_X86, CS_MODE_32, CS_MODE_64, Cs
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.cpu.assembler import assemble
from pyhv.errors import ImageError
from pyhv.guests.build import LOAD_ADDRESS, build, build_builtin
from pyhv.guests.catalogue import BUILTIN, BUILTIN_32, description_of, source_of
from pyhv.guests.preprocess import parse_string
from pyhv.loader.accept import objections
from pyhv.loader.elf import load_image
from pyhv.loader.notes import Record, records

GUESTS = (
    *("code", "debug", "fifo", "grants", "hello", "intruder", "net", "opcodes", "pages", "ping", "pong"),
    *("ticker", "usermode"),
)
GUESTS_32 = (
    *("events32", "grants32", "hello32", "linux32", "opcodes32", "pages32", "smp32", "traps32"),
    "usermode32",
)
MODES = {64: CS_MODE_64, 32: CS_MODE_32}


def disassemble(code: bytes, address: int = LOAD_ADDRESS, width: int = 64) -> list[str]:
    return [f"{i.mnemonic} {i.op_str}".strip() for i in Cs(CS_ARCH_X86, MODES[width]).disasm(code, address)]


def build_text(tmp_path: Path, text: str) -> ELFFile:
    source = tmp_path / "guest.S"
    source.write_text(text)
    return ELFFile(io.BytesIO(build(source)))


def symbol_table(elf: ELFFile) -> SymbolTableSection:
    found = elf.get_section_by_name(".symtab")
    assert isinstance(found, SymbolTableSection)
    return found


def address_of(elf: ELFFile, name: str) -> int:
    found = symbol_table(elf).get_symbol_by_name(name)
    assert found is not None
    (symbol,) = found
    return int(symbol["st_value"])


def bytes_at(elf: ELFFile, address: int, size: int) -> bytes:
    for segment in elf.iter_segments("PT_LOAD"):
        if 0 <= address - segment["p_vaddr"] < segment["p_filesz"]:
            at = address - segment["p_vaddr"]
            return segment.data()[at : at + size]
    raise AssertionError(f"nothing is loaded at {address:#x}")


# --- Encodings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("syscall", "syscall"),
        ("ud2", "ud2"),
        ("iretq", "iretq"),
        ("retfq", "retfq"),
        ("sysret", "sysretq"),
        ("pushfq", "pushfq"),
        ("mov cr3, rax", "mov cr3, rax"),
        ("mov eax, 10", "mov eax, 0xa"),
        ("mov eax, 0x10", "mov eax, 0x10"),
        ("mov rax, 0xffff800000000000", "movabs rax, 0xffff800000000000"),
        ("mov rax, -1", "mov rax, 0xffffffffffffffff"),
        ("mov rax, [rbx + 10]", "mov rax, qword ptr [rbx + 0xa]"),
        ("mov byte ptr [rbx], 'A'", "mov byte ptr [rbx], 0x41"),
        ("mov byte ptr [rbx], '0'", "mov byte ptr [rbx], 0x30"),
        ("lock btr qword ptr [rax], rbx", "lock btr qword ptr [rax], rbx"),
        ("lock cmpxchg [rbx], cx", "lock cmpxchg word ptr [rbx], cx"),
        ("xchg rax, [rip + 0x10]", "xchg qword ptr [rip + 0x10], rax"),
        ("rep stosq", "rep stosq qword ptr [rdi], rax"),
        ("invlpg [rax]", "invlpg byte ptr [rax]"),
        ("shrd rax, rdx, 32", "shrd rax, rdx, 0x20"),
    ],
)
def test_encoding(source: str, expected: str) -> None:
    assert disassemble(assemble(source, LOAD_ADDRESS)) == [expected]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("int 0x82", "int 0x82"),
        ("iretd", "iretd"),
        ("pushfd", "pushfd"),
        ("pushad", "pushal"),
        ("push 0xe021", "push 0xe021"),
        ("mov eax, [eax * 4 + 0xf5800000]", "mov eax, dword ptr [eax*4 - 0xa800000]"),
        ("mov ds, eax", "mov ds, eax"),
        ("mov eax, 10", "mov eax, 0xa"),
        ("mov cr3, eax", "mov cr3, eax"),
        ("lock cmpxchg8b [ecx]", "lock cmpxchg8b qword ptr [ecx]"),
        ("mov eax, fs:[16]", "mov eax, dword ptr fs:[0x10]"),
    ],
)
def test_encoding_in_32_bit_mode(source: str, expected: str) -> None:
    assert disassemble(assemble(source, LOAD_ADDRESS, width=32), width=32) == [expected]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("iret", "write iretd"),
        ("pushf", "write pushfd"),
        ("push ds", "would move 2 bytes"),
        ("pop es", "would move 2 bytes"),
        ("iretq", "no such instruction in this mode"),
        ("mov rax, 5", "no such operands"),
        ("push first", "cannot hold a label's address"),
    ],
)
def test_a_bad_line_in_32_bit_mode_is_named(line: str, cause: str) -> None:
    with pytest.raises(ImageError, match=cause) as caught:
        assemble(f"first: nop\n{line}\nnop", LOAD_ADDRESS, width=32)
    assert str(caught.value).startswith("line 2: ")


def test_labels_are_absolute_in_32_bit_mode() -> None:
    code = assemble("mov eax, [there + ecx * 4]\nmov edx, there + 4\nthere: .long there", 0x1000, width=32)
    assert disassemble(code[:12], 0x1000, 32) == ["mov eax, dword ptr [ecx*4 + 0x100c]", "mov edx, 0x1010"]
    assert code[12:] == (0x100C).to_bytes(4, "little")


def test_labels_forwards_and_backwards() -> None:
    code = assemble(
        "back: nop\njmp ahead\njmp back\nlea rax, [rip + ahead]\nahead: jnz back\n.quad ahead", 0x1000
    )
    assert disassemble(code[:14], 0x1000) == [
        "nop",
        "jmp 0x100c",
        "jmp 0x1000",
        "lea rax, [rip]",
        "jne 0x1000",
    ]
    assert code[14:] == (0x100C).to_bytes(8, "little")


def test_memory_operand_with_immediate_counts_from_the_end_of_the_instruction() -> None:
    code = assemble("mov dword ptr [rip + here], 5\nhere: nop", 0x1000)
    assert code.hex() == "c7050000000005000000" + "90"


def test_far_branches_are_widened() -> None:
    code = assemble("jz far\n.zero 1000\nfar: ret", 0)
    assert code[:6].hex() == "0f84e8030000"
    assert code[-1:] == b"\xc3"


@given(st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_every_number_means_the_same_in_decimal_and_hexadecimal(number: int) -> None:
    expected = number.to_bytes(8, "little")
    assert assemble(f".quad {number}", 0) == assemble(f".quad {number:#x}", 0) == expected


@pytest.mark.parametrize("width", [64, 32])
def test_differences_of_labels(width: int) -> None:
    code = assemble(
        "mov eax, there - here + 0x40000000\nhere: nop\nthere: .long 5 + there - here", 0, width=width
    )
    assert disassemble(code[:6], 0, width) == ["mov eax, 0x40000001", "nop"]
    assert code[6:] == (6).to_bytes(4, "little")


def test_nothing_is_nothing() -> None:
    assert assemble("\n\n", 0) == b""


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("frob eax", "no such instruction"),
        ("mov [rax], 5", "no such operands"),
        ("jmp nowhere", "defined nowhere"),
        ("first: nop", "already exists"),
        (".byte 256", "too large"),
        (".text", "unknown directive"),
        (".org 5", "unknown directive"),
        ("iret", "write iretq"),
        ("-", "not an instruction"),
        ("lock -", "not an instruction"),
        ("lock", "not an instruction"),
        (".quad 5 +", "malformed operand"),
        (".quad 5 + & 3", "malformed operand"),
        (".quad - | not rax", "malformed operand"),
        ("x == 5", "malformed operand"),
        ("mov eax, " + "(" * 30 + "1" + ")" * 30, "nest deeper than 20"),
        ("not qword", "a size goes with ptr"),
        ("pushf", "write pushfq"),
        ("add rax, [rbx", "`]` is missing"),
        ("mov rax, rip", "rip can only be used inside"),
        ("mov eax, 010", "010 is no number"),
        ("mov eax, 5 + first", "must begin with it"),
        ("cmp eax, -(8 - first)", "must begin with it"),
        ("mov eax, 8 - first, 1", "must begin with it"),
        ("lea rax, [5 + first - last]", "cannot be subtracted inside"),
        ("mov eax, 10h", "10h is no number"),
        (".zero 0x10000000000", "more than 64 MiB"),
        (".balign 1099511627776", "more than 64 MiB"),
    ],
)
def test_a_bad_line_is_named(line: str, cause: str) -> None:
    with pytest.raises(ImageError, match=cause) as caught:
        assemble(f"first: nop\njmp last\n{line}\nnop\nlast: nop", LOAD_ADDRESS)
    assert str(caught.value).startswith("line 3: ")


# --- Source text --------------------------------------------------------------------------------------------


def test_constants_macros_sections_and_local_labels(tmp_path: Path) -> None:
    elf = build_text(
        tmp_path,
        """
        .set COUNT, 3            # a comment
        .set SIZE, COUNT * 8 | 1 << 8
        .macro twice what, value
            \\what, \\value
            \\what, \\value
        .endm
        .macro store text
            .data
        .at\\@: .asciz "<\\text>"
            .text
            lea rdi, [rip + .at\\@]
        .endm
        _start:
            mov ecx, SIZE & ~1
        .loop:
            dec ecx
            jnz .loop
            twice "add rax", COUNT
            store "a, b # c\\n"
            store "second"
        other: .loop: jmp .loop
        .data
        value: .quad -1, other
        .balign 16
        text: .ascii "\\"q\\"\\0"
        """,
    )
    start, other = address_of(elf, "_start"), address_of(elf, "other")
    assert disassemble(bytes_at(elf, start, other + 2 - start)) == [
        "mov ecx, 0x118",
        "dec ecx",
        f"jne {start + 5:#x}",
        "add rax, 3",
        "add rax, 3",
        f"lea rdi, [rip + {address_of(elf, '_start.at1') - start - 24:#x}]",
        f"lea rdi, [rip + {address_of(elf, '_start.at2') - start - 31:#x}]",
        f"jmp {other:#x}",
    ]
    assert bytes_at(elf, address_of(elf, "_start.at1"), 12) == b"<a, b # c\n>\0"
    assert bytes_at(elf, address_of(elf, "value"), 16) == b"\xff" * 8 + other.to_bytes(8, "little")
    assert address_of(elf, "text") % 16 == 0
    assert bytes_at(elf, address_of(elf, "text"), 4) == b'"q"\0'


def test_include_is_looked_for_beside_the_source_then_among_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.inc").write_text(".set MINE, 7\n")
    elf = build_text(tmp_path, '.include "mine.inc"\n.include "xen.inc"\n_start: mov eax, MINE + EPERM\n')
    assert disassemble(bytes_at(elf, LOAD_ADDRESS, 5)) == ["mov eax, 8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_start:\n  frob\n", "guest.S:2: no such instruction"),
        ("_start:\n  jmp .missing\n", "guest.S:2: a name that is defined nowhere"),
        ("nop\n", "no label _start"),
        (".data\n_start: .quad 0\n", "no label _start in .text"),
        ("_start: nop\na: nop\na: nop\n", "guest.S:3: label a exists already, from guest.S:2"),
        (".again: nop\n_start:\n", "guest.S:1: local label .again comes before"),
        (".set A, 1\n.set A, 2\n", "guest.S:2: constant A is 0x1 already"),
        (".set A, B\n", "guest.S:1: `B` is no constant number"),
        (".set A, 1 / 0\n", "guest.S:1: "),
        (".set A, 1 << 64\n", "guest.S:1: "),
        (".set A, 0x10000000000000000\n", "does not fit in 64 bits"),
        (".set A, " + "(" * 500 + "1" + ")" * 500 + "\n", "guest.S:1: "),
        (".set A\n", "guest.S:1: write `.set NAME, value`"),
        (".set A, 1, 2, 3\n", "guest.S:1: write `.set NAME, value`"),
        (".width 16\n", "guest.S:1: write `.width 32` or `.width 64`"),
        (".set A, 1\n.width 32\n", "guest.S:2: .width comes too late"),
        ("_start: nop\n.width 32\n", "guest.S:2: .width comes too late"),
        (".width 32\n_start: mov rax, 1\n", "guest.S:2: no such operands"),
        ('.include "no.inc"\n', "guest.S:1: no file no.inc"),
        (".include no.inc\n", 'guest.S:1: a string in "double quotes"'),
        ('.include "guest.S"\n', "includes nest deeper than 32"),
        (".macro m\nm\n.endm\n_start: m\n", "macros nest deeper than 32"),
        (".macro m a\n.endm\n_start: m\n", "guest.S:3: macro m takes a"),
        (".macro m\n\\x\n.endm\n_start: m\n", r"guest.S:2: macro m has no parameter \\x"),
        (".macro m\nfrob\n.endm\n_start:\n m\n", r"guest.S:5 \(guest.S:2\): no such instruction"),
        (".macro m\nnop\n", "guest.S:1: macro m has no .endm"),
        ('_start: .ascii "\\q"\n', r"guest.S:1: unknown escape \\q"),
        ("_start: nop\n.xen_note BOGUS 1\n", "guest.S:2: write `.xen_note NAME value`"),
        ("_start: nop\n.xen_note ENTRY nowhere\n", "guest.S:2: there is no label nowhere"),
        ("_start: nop\n.bss\n.quad 1\n", ".bss may hold only zeros"),
    ],
)
def test_mistakes_are_told_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        build_text(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read .*none\.S: No such file"):
        build(tmp_path / "none.S")
    (tmp_path / "binary.S").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImageError, match="not UTF-8"):
        build(tmp_path / "binary.S")


@given(st.text(alphabet="a_.: \\@\"'#,[]()0x9+-*<~\n\tnop.setmacrodi", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_builds_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    source = tmp_path_factory.getbasetemp() / "fuzz.S"
    source.write_text("_start:\n" + text)
    with contextlib.suppress(ImageError):
        assert build(source).startswith(b"\x7fELF")


def test_strings() -> None:
    assert parse_string('"a\\n\\t\\\\\\"é"', "") == 'a\n\t\\"é'.encode()


# --- The image ----------------------------------------------------------------------------------------------


def told(raw: bytes) -> list[Record]:
    return [record for record in records(raw, 0, len(raw)) if record is not None]


def test_elf_structure(tmp_path: Path) -> None:
    elf = build_text(
        tmp_path,
        '.xen_note LOADER "generic"\n.xen_note HYPERCALL_PAGE page\n.xen_note SUSPEND_CANCEL 1\n'
        "helper: ret\n_start: call helper\n.inner: jmp .inner\n.balign 4096\npage: .zero 4096\n"
        ".data\nnumber: .long 5\n.bss\nroom: .zero 100\nlast: .zero 8\n",
    )
    assert (elf.elfclass, elf["e_machine"], elf["e_type"]) == (64, "EM_X86_64", "ET_EXEC")
    assert elf["e_entry"] == address_of(elf, "_start") == LOAD_ADDRESS + 1
    text, data = list(elf.iter_segments("PT_LOAD"))
    assert (text["p_vaddr"], text["p_paddr"], text["p_flags"]) == (LOAD_ADDRESS, LOAD_ADDRESS, 5)
    assert data["p_vaddr"] == data["p_paddr"] == text["p_vaddr"] + text["p_memsz"]
    assert (data["p_flags"], data["p_filesz"], data["p_memsz"]) == (6, 4096, 8192)
    assert all((s["p_offset"] - s["p_vaddr"]) % 4096 == 0 for s in (text, data))
    (notes,) = elf.iter_segments("PT_NOTE")
    assert [(kind, desc) for kind, _, desc, _ in told(notes.data())] == [
        (8, b"generic\0"),
        (2, (LOAD_ADDRESS + 4096).to_bytes(8, "little")),
        (14, (1).to_bytes(8, "little")),
    ]
    symbols = {s.name: s for s in symbol_table(elf).iter_symbols()}
    inner, room = symbols["_start.inner"], symbols["room"]
    assert (inner["st_info"]["bind"], symbols["_start"]["st_info"]["bind"]) == ("STB_LOCAL", "STB_GLOBAL")
    assert (symbols["helper"]["st_info"]["type"], room["st_info"]["type"]) == ("STT_FUNC", "STT_OBJECT")
    assert (symbols["helper"]["st_size"], room["st_size"]) == (1, 100)
    assert elf.get_section(room["st_shndx"]).name == ".bss"


def test_elf_structure_of_a_32_bit_kernel(tmp_path: Path) -> None:
    elf = build_text(
        tmp_path,
        '.width 32\n.set WORD, 8, 4\n.xen_note PAE_MODE "yes"\n.xen_note HYPERCALL_PAGE page\n'
        "helper: ret\n_start: call helper\n.inner: jmp .inner\n.balign 4096\npage: .zero 4096\n"
        ".data\nnumber: .long WORD\n.bss\nroom: .zero 100\nlast: .zero 8\n",
    )
    assert (elf.elfclass, elf["e_machine"], elf["e_type"]) == (32, "EM_386", "ET_EXEC")
    assert elf["e_entry"] == address_of(elf, "_start") == LOAD_ADDRESS + 1
    text, data = list(elf.iter_segments("PT_LOAD"))
    assert (text["p_vaddr"], text["p_paddr"], text["p_flags"]) == (LOAD_ADDRESS, LOAD_ADDRESS, 5)
    assert (data["p_flags"], data["p_filesz"], data["p_memsz"], data["p_align"]) == (6, 4096, 8192, 4096)
    assert data["p_vaddr"] == data["p_paddr"] == text["p_vaddr"] + text["p_memsz"]
    (notes,) = elf.iter_segments("PT_NOTE")
    assert [(kind, desc) for kind, _, desc, _ in told(notes.data())] == [
        (9, b"yes\0"),
        (2, (LOAD_ADDRESS + 4096).to_bytes(4, "little")),
    ]
    assert bytes_at(elf, address_of(elf, "number"), 4) == (4).to_bytes(4, "little")
    symbols = {s.name: s for s in symbol_table(elf).iter_symbols()}
    inner, room = symbols["_start.inner"], symbols["room"]
    assert (inner["st_info"]["bind"], symbols["_start"]["st_info"]["bind"]) == ("STB_LOCAL", "STB_GLOBAL")
    assert (symbols["helper"]["st_info"]["type"], room["st_info"]["type"]) == ("STT_FUNC", "STT_OBJECT")
    assert (symbols["helper"]["st_size"], room["st_size"]) == (1, 100)
    assert elf.get_section(room["st_shndx"]).name == ".bss"


def test_every_builtin_has_a_description() -> None:
    assert tuple(sorted(GUESTS + GUESTS_32)) == BUILTIN
    assert frozenset(GUESTS_32) == BUILTIN_32
    assert all(20 < len(description_of(name)) < 140 for name in BUILTIN)


def test_unknown_builtin() -> None:
    with pytest.raises(ImageError, match="no built-in guest named nobody; there are: code, debug, "):
        build_builtin("nobody")
    with pytest.raises(ImageError, match="no built-in guest named nobody"):
        source_of("nobody")


@pytest.mark.parametrize("name", GUESTS + GUESTS_32)
def test_builtin_is_deterministic_and_cached(name: str) -> None:
    assert build(source_of(name)) == build_builtin(name)
    assert build_builtin(name) is build_builtin(name)


@pytest.mark.parametrize("name", GUESTS)
def test_builtin_is_what_the_domain_builder_accepts(name: str) -> None:
    image = load_image(build_builtin(name), name)
    assert objections(image) == []
    assert (image.notes.loader, image.notes.xen_version, image.notes.guest_os) == (
        "generic",
        "xen-3.0",
        "pyhv",
    )
    assert (image.notes.hypercall_page is not None) == (name == "hello")


@pytest.mark.parametrize("name", GUESTS_32)
def test_builtin_32_bit_kernel_says_what_it_is(name: str) -> None:
    image = load_image(build_builtin(name), name)
    assert objections(image) == []
    assert (image.elf_class, image.notes.pae_mode, image.notes.loader) == (32, "yes", "generic")
    assert image.notes.hypercall_page is not None


@pytest.mark.parametrize("name", GUESTS + GUESTS_32)
def test_builtin_code_decodes_and_branches_to_labels(name: str) -> None:
    elf = ELFFile(io.BytesIO(build_builtin(name)))
    symbols = list(symbol_table(elf).iter_symbols())
    labels = {symbol["st_value"] for symbol in symbols}
    data = {"hypercall_page", "user_text", "user_zero"}  # bytes inside .text that are no code
    decoded = 0
    for symbol in symbols:
        if symbol["st_info"]["type"] != "STT_FUNC" or symbol.name in data or not symbol["st_size"]:
            continue
        address, size = symbol["st_value"], symbol["st_size"]
        code = bytes_at(elf, address, size).replace(b"\x0f\x0bxen", b"\x90" * 5)  # Xen's prefix
        if size > 16 and not any(code[-16:]):
            code = code.rstrip(b"\0")  # the last routine is padded to a page
        for instruction in Cs(CS_ARCH_X86, MODES[elf.elfclass]).disasm(code, address):
            decoded += 1
            address += instruction.size
            direct = instruction.op_str.startswith("0x")
            if direct and (instruction.mnemonic == "call" or instruction.mnemonic.startswith("j")):
                assert int(instruction.op_str, 16) in labels, f"{symbol.name}: {instruction}"
        assert address >= symbol["st_value"] + len(code), f"{symbol.name}: bytes that are no instruction"
    assert decoded > 150
