# SPDX-License-Identifier: GPL-2.0-only
"""The gate to the emulator's hot paths: it opens for exactly one library, touches nothing otherwise, and
other users of the library in the same process notice nothing. What the patches promise is tested beside:
stores in `test_engine_code.py`, stops in `test_engine_stops.py`, both engines in `test_engine.py`.
"""

import ctypes
import dataclasses
import gc
import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_engine import CODE, L1, Bare, at

from pyhv.cpu import binding, slots
from pyhv.cpu import vmcb as v
from pyhv.cpu.ram import Ram
from pyhv.cpu.selftest import check
from pyhv.cpu.slots import Library, library
from pyhv.cpu.trial import BrokenPromise, Trial
from pyhv.cpu.tuning import gate, layout, stops
from pyhv.cpu.tuning.block import BlockLayout
from pyhv.cpu.tuning.catalogue import PATCHES
from pyhv.cpu.tuning.form import OF_CPU, Patch, Stub, Word, find_block
from pyhv.cpu.tuning.gate import Tuning, make_tuning, tuning
from pyhv.errors import GuestCrash

SUPPORT = Path(__file__).parents[1] / "support"
SLOT = "x86_ldl_phys"
"""A function that long mode does not call: patches of ours may have its slot."""


def held(_trial: Trial) -> None:
    """A proof."""


def patch(source: str, proof: object = held, name: str = "mine", **more: object) -> Patch:
    return Patch(name, "nothing", (Stub(SLOT, source),), proof, **more)  # type: ignore[arg-type]


@pytest.fixture
def untouched() -> Iterator[None]:
    """All slots are afterwards as they were before."""
    places = library().slots
    assert len(places) > 5000
    before = {name: ctypes.c_uint64.from_address(place).value for name, place in places.items()}
    yield
    after = {name: ctypes.c_uint64.from_address(place).value for name, place in places.items()}
    changed = {name for name in after if after[name] != before[name]}
    # What the library itself has called meanwhile for the first time is resolved, and that is all.
    assert all(library().is_untouched(name) for name in changed)


def load32(trial: Trial | Bare) -> int:
    """Call the slot's function as the library would, on an engine: the word at machine address 0x3000."""
    slot = library().slot(SLOT + layout.SUFFIX)
    assert slot is not None
    function = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64)(slot.value)
    return int(function(trial.engine._processor.value, 0x3000))


# -- the gate ----------------------------------------------------------------------------------------------


def test_it_is_open_with_the_library_that_we_install() -> None:
    assert library().build_id == layout.BUILD_ID
    assert tuning().active, tuning().why_not
    assert {one.name for one in tuning().patches} == {one.name for one in PATCHES}


def test_each_patch_says_what_it_promises() -> None:
    for one in PATCHES:
        assert one.promise
        assert "\n" not in one.promise
        assert len(one.promise) < 110
    assert len({one.name for one in PATCHES}) == len(PATCHES)


@pytest.mark.promise("P-3")
@pytest.mark.usefixtures("untouched")
def test_another_build_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for build_id in ("", "0" * 40, layout.BUILD_ID[:-1] + "0"):
        other = dataclasses.replace(library(), build_id=build_id)
        monkeypatch.setattr(gate, "library", lambda other=other: other)
        made = make_tuning((patch(""),))
        assert not made.active
        assert "another build" in made.why_not


@pytest.mark.usefixtures("untouched")
def test_another_kind_of_host_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "this is aarch64" in make_tuning((patch(""),)).why_not


@pytest.mark.usefixtures("untouched")
def test_the_variable_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYHV_ENGINE_TUNING", "0")
    assert make_tuning((patch(""),)).why_not == "PYHV_ENGINE_TUNING=0 is set"


@pytest.mark.promise("P-3")
@pytest.mark.usefixtures("untouched")
def test_a_missing_slot_or_function_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no_such" in make_tuning((Patch("p", "p", (Stub("no_such", ""),), held),)).why_not
    assert "does not export nobody" in make_tuning((patch("movabs rax, {real.nobody}"),)).why_not
    fewer = {name: place for name, place in library().slots.items() if not name.startswith(SLOT)}
    monkeypatch.setattr(gate, "library", lambda: dataclasses.replace(library(), slots=fewer))
    assert "cannot be written" in make_tuning((patch(""),)).why_not


@pytest.mark.usefixtures("untouched")
def test_a_pointer_that_somebody_has_changed_closes_it() -> None:
    slot = library().slot(SLOT + layout.SUFFIX)
    assert slot is not None
    before = slot.value
    slot.value = ctypes.addressof(ctypes.create_string_buffer(16))
    try:
        assert "somebody else" in make_tuning((patch(""),)).why_not
    finally:
        slot.value = before


@pytest.mark.usefixtures("untouched")
def test_a_host_without_executable_memory_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_more: object) -> mmap.mmap:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert "writable and executable" in make_tuning((patch(""),)).why_not


@pytest.mark.promise("P-3")
@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (BrokenPromise("two is three"), "a proof failed: two is three"),
        (GuestCrash("it burns"), "a proof could not be run: it burns"),
    ],
)
def test_a_proof_that_fails_closes_it(error: Exception, why: str) -> None:
    seen = []

    def proof(trial: Trial) -> None:
        seen.append(load32(trial))
        raise error

    assert make_tuning((patch("mov eax, 77\nret", proof),)).why_not == why
    assert seen == [77]  # it was there, and is gone


def test_each_proof_leaves_the_engine_to_any_other() -> None:
    with Trial(tuning()) as trial:
        for proof in (*(one.proof for one in reversed(PATCHES)), check, *(one.proof for one in PATCHES)):
            proof(trial)
            trial.reset()


@pytest.mark.promise("P-2", "P-3")
def test_tuned_engines_pass_the_self_test() -> None:
    """What an engine that is not tuned must do, a tuned one must do as well, or there are none."""
    script = (
        "from pyhv.cpu import selftest, trial\n"
        "def fail(tried): tried.expect(f'tuned is {tried.engine.tuned}', not tried.engine.tuned)\n"
        "selftest.CHECKS = {**selftest.CHECKS, 'mine': fail}\n"
        "from pyhv.board import Board\n"
        "print(Board(16, max_domains=1, virtual_time=True, tuned=True).tuning.why_not)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "a proof failed: tuned is True\n"


@pytest.mark.usefixtures("untouched")
def test_a_bug_in_a_proof_leaves_nothing_behind() -> None:
    def proof(_trial: Trial) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make_tuning((patch("mov eax, 77\nret", proof),))


def test_a_pointer_that_is_put_back_behind_our_back_closes_it() -> None:
    """As the loader may do it, if another thread was calling the function for the first time."""
    slot = library().slot(SLOT + layout.SUFFIX)
    assert slot is not None
    before = slot.value

    def proof(_trial: Trial) -> None:
        slot.value = before

    assert "keep their values" in make_tuning((patch("mov eax, 77\nret", proof),)).why_not
    assert slot.value == before


@pytest.mark.parametrize("name", [one.name for one in PATCHES])
def test_no_proof_holds_without_its_patch(name: str) -> None:
    """On an engine as the library made it; some change how fast it is, and not what it does."""
    (one,) = (one for one in PATCHES if one.name == name)
    with Trial() as trial:
        if name in ("page walks", "stop checks", "counted blocks"):
            one.proof(trial)
        else:
            with pytest.raises(BrokenPromise):
                one.proof(trial)


def test_a_wrong_count_of_operations_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops, "_FITS", stops._FITS - 1)
    with Trial() as trial, pytest.raises(BrokenPromise, match="end differently"):
        stops.STOPS.proof(trial)


# -- stubs and blocks --------------------------------------------------------------------------------------


def test_patches_share_a_slot_and_words_are_each_engine_s_own() -> None:
    """The first patch is entered first; what it lets pass arrives at the second, then at the library."""
    count = "inc qword ptr [rax + {{word.{name}}}]"
    first = patch(
        f"{find_block(OF_CPU)}\n{count.format(name='calls')}\ncmp qword ptr [rax + {{word.calls}}], 2\n"
        "jne next\nmov eax, 111\nret",
        words=(Word("calls"),),
    )
    second = patch(
        f"{find_block(OF_CPU)}\n{count.format(name='passed')}\ncmp qword ptr [rax + {{word.passed}}], 102\n"
        "jne next\nmov eax, 222\nret",
        words=(Word("passed", lambda facts: facts.ram.frames),),
    )
    slot = library().slot(SLOT + layout.SUFFIX)
    assert slot is not None
    before = slot.value
    made = make_tuning((first, second))
    try:
        assert made.active, made.why_not
        with Trial(made) as one, Trial(made) as other, Trial() as plain, Trial(tuning()) as differently:
            for trial in (one, other, plain, differently):
                trial.ram.writable.d[0x3000 // 4] = 333
            assert [load32(one) for _ in range(3)] == [333, 111, 333]
            assert one.engine.block is not None
            assert (one.engine.block["calls"], one.engine.block["passed"]) == (3, 64 + 2)
            assert other.engine.block is not None
            assert (other.engine.block["calls"], other.engine.block["passed"]) == (0, 64)
            other.engine.block["passed"] = 101
            assert load32(other) == 222
            assert [load32(trial) for trial in (plain, differently) for _ in range(3)] == [333] * 6
    finally:
        slot.value = before


def test_two_words_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        BlockLayout((patch("", words=(Word("ram_size"),)),))
    with pytest.raises(ValueError, match="too many"):
        BlockLayout((patch("", words=tuple(Word(f"w{n}") for n in range(300))),))


def test_an_engine_whose_memory_is_not_one_region_stays_plain() -> None:
    bare = Bare(tuned=False)
    smaller = Ram(63)
    try:
        assert tuning().attach(bare.engine.handle, smaller) is None
        pointer = ctypes.c_uint64.from_address(bare.engine.handle + layout.UC_MEMORY_MAPPING)
        before, pointer.value = pointer.value, pointer.value + 16
        assert tuning().attach(bare.engine.handle, bare.ram) is None
        pointer.value = before
        assert Tuning().attach(bare.engine.handle, bare.ram) is None
    finally:
        bare.close()


def test_an_engine_that_may_stop_within_a_block_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhv.cpu.engine.find_no_exit_request", lambda: None)
    bare = Bare(tuned=True)
    assert not bare.engine.tuned
    bare.close()


# -- the library's image -----------------------------------------------------------------------------------


def test_slots_are_what_the_loader_calls_through() -> None:
    """Against the dynamic linker and against pyelftools."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.relocation import RelocationSection
    from elftools.elf.sections import NoteSection, SymbolTableSection

    with open(binding.LIBRARY_PATH, "rb") as file:
        elf = ELFFile(file)
        symbols, relocations = elf.get_section_by_name(".dynsym"), elf.get_section_by_name(".rela.plt")
        notes = elf.get_section_by_name(".note.gnu.build-id")
        assert isinstance(symbols, SymbolTableSection)
        assert isinstance(relocations, RelocationSection)
        assert isinstance(notes, NoteSection)
        expected = {
            symbols.get_symbol(one["r_info_sym"]).name: one["r_offset"]
            for one in relocations.iter_relocations()
        }
        (note,) = notes.iter_notes()
    assert {name: place - library().base for name, place in library().slots.items()} == expected
    assert library().build_id == note["n_desc"]


def test_a_library_without_the_tables_has_no_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slots._slots(library().base, {}) == {}
    monkeypatch.setattr("pyhv.cpu.slots.ctypes.string_at", lambda _address, size: b"MZ".ljust(size, b"\0"))
    assert slots._read_library() == Library(0, "", {}, range(0))


def test_a_build_id_is_looked_for_among_other_notes() -> None:
    other = b"\x04\0\0\0\x05\0\0\0\x01\0\0\0GNU\0" + b"12345\0\0\0"
    wanted = b"\x04\0\0\0\x02\0\0\0\x03\0\0\0GNU\0" + b"\xab\xcd\0\0"
    assert slots._build_id(other + wanted) == "abcd"
    assert slots._build_id(other) == slots._build_id(b"") == ""


# -- other users of the library ----------------------------------------------------------------------------


def other_users(how: str, **environment: str) -> str:
    """What engines of the plain binding compute in a process of their own."""
    return subprocess.run(
        [sys.executable, str(SUPPORT / "unicorn_users.py"), how],
        env={**os.environ, "PYTHONHASHSEED": "0", **environment}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


@pytest.mark.promise("P-3")
def test_other_users_of_the_emulator_notice_nothing() -> None:
    """Engines made before and after, with RAM elsewhere, with hooks on memory, all with changing code."""
    alone = other_users("alone")
    assert len(alone.splitlines()) > 40
    assert other_users("with pyhv") == alone
    assert other_users("with pyhv", PYHV_ENGINE_TUNING="0") == alone


# -- what it leaves behind ---------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.promise("P-5")
@pytest.mark.parametrize("tuned", [True, False])
def test_a_thousand_engines_leave_nothing_behind(tuned: bool) -> None:
    ram = Ram(64)

    def one() -> None:
        bare = Bare(ram=ram, tuned=tuned)
        assert bare.engine.tuned == tuned
        bare.q[v.RBX] = 0
        bare.run("mov eax, 1; ud2")
        bare.close()

    def many(count: int) -> int:
        for _ in range(count):
            one()
        gc.collect()
        return resident()

    before = many(200)
    assert many(1000) < before + (3 << 20)


def test_the_whole_is_decided_quickly() -> None:
    code = (
        "import time; from pyhv.cpu.selftest import self_test; self_test()\n"
        "from pyhv.cpu.tuning.gate import tuning\n"
        "t = time.process_time(); assert tuning().active; print(time.process_time() - t)"
    )
    taken = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    )
    assert taken < 0.09  # 30 ms on an idle host


def test_a_child_of_a_fork_has_engines_of_its_own() -> None:
    """Parent and child go on with the same engine and do different things to its code."""
    bare = Bare(tuned=True)
    bare.ram.writable.q[L1 << 9 | 50] = at(CODE) | 0x67
    bare.run("mov eax, 1; ud2")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        values = []
        for value in (7, 8):
            bare.q[12] = at(50, 1)
            bare.q[v.RIP], bare.q[v.RBX] = at(40), 0
            bare.write(f"mov byte ptr [r12], {value}; mov r13, {at(CODE)}; jmp r13", at(40))
            bare.engine.invalidate_code(40)
            bare.go()
            values.append(bare.q[v.RAX])
        os.write(writer, repr(values).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"[7, 8]"
    os.close(reader)
    os.close(writer)
    bare.q[v.RIP] = at(CODE)
    bare.go()
    assert bare.q[v.RAX] == 1
    bare.close()
