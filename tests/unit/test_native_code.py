# SPDX-License-Identifier: GPL-2.0-only
"""Native code is assembled once, comes back from the cache, and from nowhere else."""

import os
import struct
from pathlib import Path

import pytest

from pyhv import cache
from pyhv.cpu import native_code
from pyhv.cpu.assembling import new_assembler
from pyhv.cpu.native_code import Template, code, templates

SOURCE = """
    movabs rax, {real.first}
    lea r11, [rip + table]
    cmp dword ptr [rdi + {word.size}], {most}
    jne out
    movabs rcx, {next}
    movabs rdx, {real.first}
out:
    ret
table:
    .quad {real.second}, out, {next}, table
"""
VALUES = {"real.first": 1, "real.second": 0xFFFF_8000_0000_0001, "next": 0x5EED_0000_F00D_D1CE}


class Words:
    size = -8


CONSTANTS = {"word": Words, "most": 17}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the templates called `mine` are kept, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pyhv" / "native" / "mine"


def made() -> Template:
    return templates("mine", "ret", SOURCE, constants=CONSTANTS)[1]


def refuse(*_arguments: object) -> Template:
    raise AssertionError("it is assembled again")


def directly(at: int) -> bytes:
    """What the assembler makes of the source with all its numbers."""
    family = type("Family", (), {"first": VALUES["real.first"], "second": f"{VALUES['real.second']:#x}"})
    text = SOURCE.format(real=family, word=Words, most=17, next=VALUES["next"])
    return bytes(new_assembler().asm(text, at)[0])


@pytest.mark.parametrize("at", [0, 0x7F12_3456_7000, 0x5EED_0000_F00D_D1CE])
def test_linked_code_is_what_the_assembler_makes(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made().link(at, VALUES) == directly(at)
    monkeypatch.setattr(native_code, "_assemble", refuse)
    assert made().link(at, VALUES) == directly(at)


@pytest.mark.parametrize(
    "place", ["mov eax, {small}", "mov dword ptr [rdi], {small}", "lea rax, [rdi + {small}]"]
)
def test_a_number_that_has_less_room_is_refused(place: str) -> None:
    """Keystone would take what fits of it."""
    with pytest.raises(ValueError, match="small is no number of 64 bits"):
        templates("mine", place)


def test_a_name_without_a_value_is_refused() -> None:
    with pytest.raises(KeyError, match="next"):
        made().link(0, {"real.first": 1, "real.second": 2})


def test_code_without_names_is_the_same_everywhere() -> None:
    assert code("mine", "nop; jmp over; nop; over: ret") == b"\x90\xeb\x01\x90\xc3"
    words = struct.unpack("<2I", code("mine", "ret; nop", native_code.AARCH64))
    assert words == (0xD65F_03C0, 0xD503_201F)


@pytest.mark.parametrize("change", ["source", "constant", "assembler", "module"])
def test_other_ingredients_are_assembled_anew(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made()
    module, assembler = native_code._makers()
    monkeypatch.setattr(native_code, "_assemble", lambda *_: Template(b"another", (), (), ()))
    constants = {**CONSTANTS, "most": 18} if change == "constant" else CONSTANTS
    if change == "assembler":
        monkeypatch.setattr(native_code, "_makers", lambda: (module, assembler + b"0"))
    if change == "module":
        monkeypatch.setattr(native_code, "_makers", lambda: (module + b"0", assembler))
    source = SOURCE + "nop\n" * (change == "source")
    assert templates("mine", "ret", source, constants=constants)[1].code == b"another"


@pytest.mark.parametrize("position", [0, 20, 60, 90, 110, -1])
def test_a_damaged_file_is_made_anew(kept: Path, position: int) -> None:
    made()
    whole = bytearray(kept.read_bytes())
    damaged = bytearray(whole)
    damaged[position] ^= 1
    kept.write_bytes(damaged)
    assert made().link(64, VALUES) == directly(64)
    assert kept.read_bytes() == whole


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_is_not_believed(kept: Path, mode: int) -> None:
    made()
    kept.chmod(mode)
    made_of = kept.read_bytes().split(b" ")[3].decode()
    assert cache.recall(kept, made_of) is None
    assert made().link(64, VALUES) == directly(64)
    assert kept.stat().st_mode & 0o777 == 0o644
    assert cache.recall(kept, made_of) is not None


def test_a_file_of_somebody_else_is_not_believed(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made()
    made_of = kept.read_bytes().split(b" ")[3].decode()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert cache.recall(kept, made_of) is None


def test_a_link_is_not_followed_and_a_pipe_not_waited_for(kept: Path) -> None:
    made()
    made_of = kept.read_bytes().split(b" ")[3].decode()
    elsewhere = kept.rename(kept.with_name("elsewhere"))
    kept.symlink_to(elsewhere)
    assert cache.recall(kept, made_of) is None
    assert cache.recall(elsewhere, made_of) is not None
    os.mkfifo(kept.with_name("pipe"))
    assert cache.recall(kept.with_name("pipe"), made_of) is None


@pytest.mark.parametrize("why", ["a file in its place", "no home"])
def test_without_a_cache_it_is_assembled(why: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        kept.parents[1].write_bytes(b"")
    assert made().link(64, VALUES) == directly(64)
