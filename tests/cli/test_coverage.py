# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv boot --coverage`: exactly the lines that were executed, on each engine and lane, and the same run."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lanes import pyhv as command
from lanes import require_native

import pyhv
from pyhv.guests.build import build, build_listed
from pyhv.guests.listing import read_listing, written
from pyhv.lane import NATIVE, PLAIN
from pyhv.loader.elf import load_image
from pyhv.observe.blocks import Blocks
from pyhv.observe.places import lines_of_listing
from pyhv.observe.report import GuestReport

# Which lines are executed is written beside them: `# +` for those that are, `# -` for those that are not.
SOURCE = """
.include "xen.inc"
.include "kernel.inc"
.macro both one, other
    \\one
    \\other
.endm
.text
_start:
    kernel_entry                # +
    mov ecx, 3                  # +
.again:
    call leaf                   # +
    loop .again                 # +
    test ecx, ecx               # +
    jz .taken                   # +
    both nop, "call never"      # -
.taken:
    both nop, "jmp .on"         # +
    ud2                         # -
.quad 1
.on:
    print "it runs\\n"          # +
    cmp ecx, 5                  # +
    jne .last                   # +
    call never                  # -
.last:
    jmp finish_success          # +
leaf:
    lea eax, [ecx + 1]          # +
    ret                         # +
never:
    ret                         # -
"""
SOURCE_32 = ".width 32\n" + SOURCE.replace("kernel.inc", "kernel32.inc")
FAULTS = """
.include "xen.inc"
.include "kernel.inc"
.text
_start:
    ud2         # the first block of all, and the last
    nop
"""

C = """
__asm__(
    ".pushsection .note.Xen, \\"a\\", @note\\n"
    ".long 4, 8, 5\\n .asciz \\"Xen\\"\\n .asciz \\"xen-3.0\\"\\n"
    ".long 4, 8, 8\\n .asciz \\"Xen\\"\\n .asciz \\"generic\\"\\n"
    ".popsection");
static int reason;
static long sched_op(long command, void *argument)
{
    long result;                                                        // not a statement
    __asm__ volatile("syscall" : "=a"(result)                           // +
        : "a"(29), "D"(command), "S"(argument) : "rcx", "r11", "memory");
    return result;                                                      // -
}
void never(void)
{
    reason = 5;                                                         // -
}
void _start(void)
{
    if (reason)                                                         // +
        never();                                                        // -
    for (;;)
        sched_op(2, &reason);                                           // +
}
"""


def marked(path: Path) -> tuple[set[int], set[int]]:
    """The lines with a `# +`, and those with a `# -`."""
    lines = list(enumerate(path.read_text().splitlines(), 1))
    hit, missed = ({number for number, line in lines if line.endswith(f"# {mark}")} for mark in "+-")
    return hit, missed


@pytest.fixture(params=[64, 32])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An image with its listing."""
    source = tmp_path / "small.S"
    source.write_text(SOURCE if request.param == 64 else SOURCE_32)
    image, lines = build_listed(source)
    (tmp_path / "small.img").write_bytes(image)
    (tmp_path / "small.lst").write_text(written(lines))
    return tmp_path / "small.img"


def lcov_of(file: Path) -> dict[Path, dict[int, int]]:
    """By source: how often each line was executed."""
    found: dict[Path, dict[int, int]] = {}
    for record in file.read_text().split("end_of_record\n")[:-1]:
        path = re.search(r"^SF:(.*)$", record, re.MULTILINE)
        assert path is not None
        lines = re.findall(r"^DA:(\d+),(\d+)", record, re.MULTILINE)
        found[Path(path[1])] = {int(number): int(count) for number, count in lines}
    return found


@pytest.mark.parametrize("lane", [PLAIN, NATIVE])
def test_exactly_the_lines_that_were_executed(kernel: Path, lane: str) -> None:
    if lane == NATIVE:
        require_native()
    file = kernel.with_suffix(".info")
    ran = command("boot", str(kernel), "--memory", "8", "--coverage", str(file), within=lane)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "it runs\nSUCCESS\n"
    lines = lcov_of(file)[kernel.with_suffix(".S")]
    hit, missed = marked(kernel.with_suffix(".S"))
    assert {number for number, count in lines.items() if count} == hit
    assert {number for number, count in lines.items() if not count} == missed
    record = file.read_text()
    assert re.search(r"^FNDA:1,leaf$", record, re.MULTILINE)
    assert re.search(r"^FNDA:0,never$", record, re.MULTILINE)
    assert lcov_of(file)[kernel.with_suffix("") / "hypercalls"]


def blocks_of(*guests: str | bytes, tuned: bool) -> dict[int, Any]:
    blocks = Blocks()
    with pyhv.Machine("64M", virtual_time=True, tuned=tuned) as machine:
        blocks.watch(machine.hypervisor)
        for guest in guests:
            machine.boot(guest, memory="16M")
        machine.introduce_peers()
        machine.run(seconds=2)
    return blocks.domains


@pytest.mark.parametrize("tuned", [True, False])
def test_exactly_the_lines_on_either_engine(kernel: Path, tuned: bool) -> None:
    (reached,) = blocks_of(kernel.read_bytes(), tuned=tuned).values()
    source, image = kernel.with_suffix(".S"), load_image(kernel, "small")
    lines = lines_of_listing(read_listing(kernel.with_suffix(".lst")), image, "small.lst")
    texts = {text.path: text for text in GuestReport("small", image, reached, lines).texts(kernel.parent)}
    hit, missed = marked(source)
    assert texts[source].hit == hit
    assert texts[source].lines == hit | missed


@pytest.mark.parametrize("guests", [("usermode",), ("usermode32",), ("ping", "pong")])
def test_tuned_or_not_it_is_the_same(guests: tuple[str, ...]) -> None:
    tuned = blocks_of(*guests, tuned=True)
    assert tuned == blocks_of(*guests, tuned=False)
    assert len(tuned) == len(guests)
    if "usermode" in guests[0]:
        assert 5 < len(tuned[1].user) < len(tuned[1].kernel)


@pytest.mark.parametrize("tuned", [True, False])
def test_also_the_very_first_block_is_noted(tmp_path: Path, tuned: bool) -> None:
    source = tmp_path / "faults.S"
    source.write_text(FAULTS)
    (reached,) = blocks_of(build(source), tuned=tuned).values()
    ((start, end),) = reached.kernel
    listed = build_listed(source)[1]
    assert [line.text for line in listed if start <= line.address < end] == ["ud2"]


@pytest.mark.promise("T-1")
@pytest.mark.parametrize("tuning", ["--engine-tuning", "--no-engine-tuning"])
def test_the_run_is_the_same_as_without(tmp_path: Path, tuning: str) -> None:
    arguments = ["boot", "usermode", "traps32", "ticker", "--virtual-time", tuning, "--digest"]
    without = command(*arguments, str(tmp_path / "a"))
    covered = command(*arguments, str(tmp_path / "b"), "--coverage", str(tmp_path / "all.json"))
    assert (without.returncode, without.stdout) == (covered.returncode, covered.stdout)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() != ""
    told = json.loads((tmp_path / "all.json").read_text())
    assert [guest["name"] for guest in told["guests"]] == ["usermode", "traps32", "ticker"]
    assert all(guest["kernel"] for guest in told["guests"])
    assert any(one["name"] == "_start" and one["blocks"] > 1 for one in told["guests"][0]["symbols"])
    assert ["sched_op", "shutdown", "", 3] in told["hypercalls"]


def test_guests_of_one_source_are_told_together(tmp_path: Path) -> None:
    ran = command("boot", "ping", "pong", "--coverage", str(tmp_path / "c.info"))
    assert ran.returncode == 0, ran.stderr
    covered = lcov_of(tmp_path / "c.info")
    assert {"ping.S", "pong.S", "pingpong.inc", "kernel.inc"} <= {path.name for path in covered}
    assert len(covered) == len({path.name for path in covered})


def test_pages_of_built_in_guests(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()  # it may be there
    ran = command("boot", "hello", "--coverage", str(tmp_path / "pages"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.endswith(f"pyhv: coverage is in {tmp_path / 'pages' / 'index.html'}\n")
    (page,) = (tmp_path / "pages").glob("*hello_S.html")
    assert page.read_text().count('class="run"') > 20


@pytest.mark.parametrize("kernel", [64], indirect=True)
def test_without_lines_symbols_are_told_and_without_symbols_pages(kernel: Path) -> None:
    kernel.with_suffix(".lst").unlink()
    ran = command("boot", str(kernel), "--memory", "8", "--coverage", str(kernel.with_suffix(".txt")))
    assert ran.returncode == 0, ran.stderr
    table = kernel.with_suffix(".txt").read_text()
    assert re.search(r" 100% +1  leaf$", table, re.MULTILINE)
    assert re.search(r"^  not executed: .*\bnever\b", table, re.MULTILINE)
    assert "| sched_op | shutdown | 1 |" in table
    if shutil.which("strip") is None:
        pytest.skip("there is no strip")
    subprocess.run(["strip", str(kernel)], check=True)
    ran = command("boot", str(kernel), "--memory", "8", "--coverage", str(kernel.with_suffix(".info")))
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^FNDA:1,page_100000$", kernel.with_suffix(".info").read_text(), re.MULTILINE)
    tables = kernel.with_suffix("")
    assert "page_100000" in (tables / "small.img.symbols").read_text()


@pytest.mark.parametrize("kernel", [64], indirect=True)
@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("cover.xml", 2, "is no kind of report; it may end in .info (lcov), .json (all blocks) or .txt"),
        ("nowhere/cover.info", 4, "cannot be written for the coverage (No such file or directory)"),
        ("small.img/pages", 4, "cannot be written for the coverage (Not a directory)"),
    ],
)
def test_what_cannot_be_is_one_sentence(kernel: Path, target: str, code: int, said: str) -> None:
    ran = command("boot", str(kernel), "--memory", "8", "--coverage", str(kernel.parent / target))
    assert ran.returncode == code
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == "", "nothing has run"


@pytest.mark.parametrize("kernel", [64], indirect=True)
def test_a_listing_that_does_not_fit_is_refused_before_anything_runs(kernel: Path) -> None:
    listing = kernel.with_suffix(".lst")
    listing.write_text(re.sub(r"  (\w{16})  90 ", r"  \1  91 ", listing.read_text(), count=1))
    ran = command("boot", str(kernel), "--memory", "8", "--coverage", str(kernel.with_suffix(".txt")))
    assert (ran.returncode, ran.stdout) == (4, "")
    assert "has something else; build both again, or remove it" in ran.stderr


@pytest.mark.parametrize("kernel", [64], indirect=True)
def test_without_coverage_py_it_says_what_to_install(kernel: Path) -> None:
    (kernel.parent / "coverage.py").write_text("raise ImportError\n")
    arguments = ["boot", str(kernel), "--memory", "8", "--coverage"]
    away = {"PYTHONPATH": str(kernel.parent)}
    ran = command(*arguments, str(kernel.with_suffix(".info")), environment=away)
    assert (ran.returncode, ran.stdout) == (4, "")
    assert "needs coverage.py (pip install 'pyhv[coverage]')" in ran.stderr
    ran = command(*arguments, str(kernel.with_suffix(".txt")), environment=away)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("tuned", [True, False])
def test_a_block_counts_whole_though_it_ended_in_a_fault(tmp_path: Path, tuned: bool) -> None:
    """As docs/coverage.md says: the emulator tells which blocks are begun."""
    source = tmp_path / "faults.S"
    source.write_text(
        FAULTS.replace("ud2  ", "mov rax, 0x7fff00000000\n    mov rax, [rax]\n    inc rax\n    jmp .\n")
    )
    (reached,) = blocks_of(build(source), tuned=tuned).values()
    ((start, end),) = reached.kernel
    listed = build_listed(source)[1]
    found = [line.text for line in listed if start <= line.address < end]
    assert found == ["mov rax, 0x7fff00000000", "mov rax, [rax]", "inc rax", "jmp ."]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_a_kernel_in_c_has_the_lines_of_its_dwarf(tmp_path: Path) -> None:
    (tmp_path / "k.c").write_text(C)
    flags = [
        "-g",
        "-O0",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-fno-pic",
        "-fcf-protection=none",
        "-Wl,-Ttext=0x100000",
    ]
    subprocess.run(["gcc", *flags, "-o", "k", "k.c"], cwd=tmp_path, check=True)
    ran = command(
        "boot", str(tmp_path / "k"), "--memory", "8", "--timeout", "9", "--coverage", str(tmp_path / "c.info")
    )
    assert ran.returncode == 0, ran.stderr
    lines = lcov_of(tmp_path / "c.info")[tmp_path / "k.c"]
    marks = {
        number: line[-1] for number, line in enumerate(C.splitlines(), 1) if line.endswith(("/ +", "/ -"))
    }
    assert {number: "+" if lines[number] else "-" for number in marks} == marks
    assert "FNDA:0,never" in (tmp_path / "c.info").read_text()


def test_build_writes_the_listing(tmp_path: Path) -> None:
    source = tmp_path / "k.S"
    source.write_text(SOURCE)
    image, listing = tmp_path / "k.img", tmp_path / "k.lst"
    built = command("build", str(source), "-o", str(image), "--listing", str(listing))
    assert built.returncode == 0, built.stderr
    assert image.read_bytes() == build(source)
    assert f"{source}:\n" in listing.read_text()
    assert re.search(
        r"^  0{10}\w{6}  8d4101 +28  lea eax, \[ecx \+ 1\]$", listing.read_text(), re.MULTILINE
    ) or (re.search(r"67", listing.read_text()))
    refused = command("build", str(source), "-o", str(image), "--listing", str(tmp_path / "no" / "k.lst"))
    assert refused.returncode == 4
    assert "the listing cannot be written (No such file or directory)" in refused.stderr
