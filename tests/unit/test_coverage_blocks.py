# SPDX-License-Identifier: GPL-2.0-only
"""What coverage is made of: extents, routines, lines of listings and of DWARF, and what a report says."""

import shutil
import subprocess
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.errors import EnvironmentProblem, ImageError
from pyhv.guests.build import build, build_listed
from pyhv.guests.catalogue import source_of
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage, Symbol
from pyhv.machine import Machine, MachineConfig
from pyhv.observe.blocks import AddressSet, Block, Blocks, Reached
from pyhv.observe.coverage import CRASH, OK, Point
from pyhv.observe.places import SourceLine, lines_of_dwarf, lines_of_listing, routines
from pyhv.observe.rendered import write_html, write_lcov
from pyhv.observe.report import GuestReport, Text, hypercall_text, merged

BLOCKS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda b: (b[0], b[0] + b[1])))


@given(BLOCKS, st.integers(0, 80), st.integers(0, 80))
def test_an_extent_is_the_set_of_its_blocks_addresses(blocks: list[Block], start: int, end: int) -> None:
    addresses = {address for low, high in blocks for address in range(low, high)}
    extent = AddressSet(blocks)
    assert {address for address in range(90) if extent.covers(address)} == addresses
    assert extent.within(start, end) == len(addresses & set(range(start, end)))
    assert all(a[1] < b[0] for a, b in zip(extent.ranges, extent.ranges[1:], strict=False))


@pytest.fixture(scope="module")
def hello() -> KernelImage:
    return load_image(build(source_of("hello")), "hello")


def test_routines_are_the_symbols_of_the_code(hello: KernelImage) -> None:
    found = {symbol.name: symbol for symbol in routines(hello)}
    assert "puts" in found
    assert "start_info" not in found  # data
    assert not any("." in name for name in found)  # places inside of routines
    assert all(a.va + a.size <= b.va for a, b in zip(found.values(), list(found.values())[1:], strict=False))


def test_symbols_without_sizes_reach_to_the_next(hello: KernelImage) -> None:
    known = routines(hello)
    unsized = tuple(symbol._replace(size=0) for symbol in known)
    image = replace(hello)
    image.__dict__["symbols"] = unsized
    assert [(one.va, one.name) for one in routines(image)] == [(one.va, one.name) for one in known]
    assert sum(one.size for one in routines(image)) == len(hello.segments[0].data)


def test_symbols_are_believed_as_far_as_there_is_code(hello: KernelImage) -> None:
    """Sizes are whatever the file says; and a kernel without an executable segment has code for all that."""
    end = 0x100000 + hello.segments[0].memsz
    image = replace(hello, segments=tuple(one._replace(flags=4) for one in hello.segments[:1]))
    image.__dict__["symbols"] = (
        Symbol(0x100010, 1 << 63, "huge"),
        Symbol(0x100020, 8, "within"),
        Symbol(end, 1, "not"),
    )
    assert routines(image) == [Symbol(0x100010, end - 0x100010, "huge")]
    image.__dict__["symbols"] = (Symbol(0x100010, 0, "a"), Symbol(0x100010, 0, "b"), Symbol(0x100018, 0, "c"))
    assert [(one.name, one.size) for one in routines(image)] == [("b", 8), ("c", end - 0x100018)]


def test_an_image_without_symbols_has_pages(hello: KernelImage) -> None:
    stripped = replace(hello, symbol_table=None)
    assert [one.name for one in routines(stripped)] == ["page_100000", "page_101000"]
    report = GuestReport("it", stripped, Reached(kernel={(0x100FFE, 0x101002)}, user={(4, 6)}), [])
    assert [(one.executed, one.blocks) for one in report.routines] == [(2, 1), (2, 0)]
    assert report.elsewhere == 2
    assert (
        report.table()[0] == "it: 2 of 2 pages, 4 of 8192 bytes, 2 blocks (1 in user mode), 2 bytes elsewhere"
    )
    (text,) = report.texts(Path("/reports"))
    assert text.path == Path("/reports/hello.symbols")
    assert text.lines == text.hit == {1, 2}


def test_a_listing_of_another_image_is_refused(hello: KernelImage) -> None:
    other = build_listed(source_of("pages"))[1]
    with pytest.raises(ImageError, match=r"it has `.*`, and hello has something else"):
        lines_of_listing(other, hello, "hello.lst")


def test_lines_are_hit_where_their_first_byte_is(hello: KernelImage) -> None:
    path = Path("/k.S")
    base = 0x100000
    lines = [
        SourceLine(base, path, 1),
        SourceLine(base + 1, path, 2),
        SourceLine(base + 4, path, 3),
        SourceLine(base + 8, path, 1),
    ]
    report = GuestReport("it", hello, Reached({(base + 1, base + 3)}, {(base + 8, base + 9)}), lines)
    (text,) = report.texts(Path("/reports"))
    assert (text.lines, text.hit) == ({1, 2, 3}, {1, 2})
    assert text.functions == {"mfn_to_va": {1, 2, 3}}
    other = Text(path, None, {3, 4}, {3}, {"puts": {4}})
    (both,) = merged([text, other])
    assert (both.lines, both.hit) == ({1, 2, 3, 4}, {1, 2, 3})
    assert both.functions == {"mfn_to_va": {1, 2, 3}, "puts": {4}}


def test_texts_of_one_name_are_told_apart() -> None:
    path = Path("/reports/k.symbols")
    texts = [
        Text(path, text, {1}, hit)
        for text, hit in (("a\n", {1}), ("b\n", set()), ("a\n", set()), ("b\n", {1}))
    ]
    assert [(text.path.name, text.text, text.hit) for text in merged(texts)] == [
        ("k.symbols", "a\n", {1}), ("k.symbols-2", "b\n", {1}),
    ]  # fmt: skip


def test_what_is_kept_of_a_guest_has_a_bound(hello: KernelImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code at ever new addresses fills a guest's share, and no more."""
    monkeypatch.setattr("pyhv.observe.blocks.MOST_BLOCKS", 3)
    blocks = Blocks()
    with closing(Machine(MachineConfig(1024, virtual_time=True))) as machine:
        blocks.watch(machine)
        assert machine.builder.on_block is not None
        for start in range(5):
            machine.builder.on_block(1, start, 1, True)
        machine.builder.on_block(1, 7, 1, False)
    reached = blocks.of(1)
    assert (len(reached.user), reached.kernel, reached.full) == (3, {(7, 8)}, True)
    assert GuestReport("it", hello, reached, []).table()[0].endswith(", and more than is kept")


# -- DWARF ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
@pytest.mark.parametrize("version", [3, 4, 5])
def test_lines_of_an_image_with_dwarf(tmp_path: Path, version: int) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "k.c").write_text("int _start(void)\n{\n  int a = 3;\n\n  return a;\n}\n")
    subprocess.run(
        ["gcc", f"-gdwarf-{version}", "-O0", "-nostdlib", "-static", "-o", "k", "sub/k.c"],
        cwd=tmp_path,
        check=True,
    )
    lines = lines_of_dwarf(tmp_path / "k")
    assert {line.number for line in lines} == {2, 3, 5, 6}
    assert {line.path.resolve() for line in lines} == {(tmp_path / "sub" / "k.c").resolve()}
    subprocess.run(["strip", "k"], cwd=tmp_path, check=True)
    assert lines_of_dwarf(tmp_path / "k") == []


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_damaged_dwarf_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "k.c").write_text("int _start(void) { return 3; }\n")
    subprocess.run(["gcc", "-g", "-nostdlib", "-static", "-o", "k", "k.c"], cwd=tmp_path, check=True)
    file, found = (
        tmp_path / "k",
        subprocess.run(
            ["readelf", "-SW", "k"], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout,
    )
    refused = 0
    row = next(line for line in found.splitlines() if ".debug_line " in line).split("]")[1].split()
    at, size = int(row[3], 16), int(row[4], 16)
    whole = file.read_bytes()
    for offset in range(size):
        for value in (0, 0xFF):
            file.write_bytes(whole[: at + offset] + bytes([value]) + whole[at + offset + 1 :])
            try:
                lines_of_dwarf(file)
            except ImageError:
                refused += 1
    assert refused


# -- reports --------------------------------------------------------------------------------------------


def test_hypercalls_are_a_text() -> None:
    counts = Counter({Point("sched_op", "shutdown", OK): 1, Point("iret", "", CRASH): 1})
    text = hypercall_text(counts, Path("/reports"))
    assert text.text is not None
    rows = text.text.splitlines()
    assert [rows[number - 1].split()[0] for number in sorted(text.hit)] == ["sched_op", "shutdown"]
    assert len(text.functions["sched_op"]) > 3
    assert max(text.lines) <= len(rows)


def test_lcov_and_pages_say_what_was_hit(tmp_path: Path) -> None:
    path = tmp_path / "k.S"
    path.write_text("_start:\n  nop\n  hlt\n# <end>\n")
    texts = [Text(path, None, {2, 3}, {2}, {"_start": {2, 3}}), Text(tmp_path / "gone.c", None, {7}, set())]
    write_lcov(texts, tmp_path / "k.info")
    lcov = (tmp_path / "k.info").read_text()
    assert "DA:2,1\nDA:3,0\nLF:2\nLH:1\nFN:2,3,_start\nFNDA:1,_start\nFNF:1\nFNH:1\nend_of_record" in lcov
    assert "DA:7,0\n" in lcov
    write_html(texts, tmp_path / "pages")
    (page,) = (tmp_path / "pages").glob("*k_S.html")
    assert "run" in page.read_text()
    assert "# &lt;end&gt;" in page.read_text()


def test_a_report_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="the coverage report cannot be written"):
        write_html([Text(tmp_path / "k", "text\n", {1}, {1})], tmp_path / "file" / "pages")
