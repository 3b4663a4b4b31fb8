# SPDX-License-Identifier: GPL-2.0-only
"""The start-up proofs: an emulator that is laid out or behaves otherwise is refused, with a remedy."""

import ctypes
import os
import time
from collections.abc import Iterator
from inspect import unwrap

import pytest
from bare_engine import Bare
from lanes import plain_lane

from pyhv.cpu import binding, probe, selftest
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble
from pyhv.errors import EngineError

# -- start-up proofs ---------------------------------------------------------------------------------------


@pytest.fixture
def handle() -> Iterator[int]:
    made = Bare()
    yield made.engine.handle
    made.close()


@pytest.mark.promise("P-2")
@pytest.mark.parametrize(
    "name",
    ["RIP", "CR", "DR", pytest.param("DF", marks=plain_lane("it is set by compiled code")), "SEG_BASE"],
)
def test_a_wrong_offset_is_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, handle: int, name: str
) -> None:
    value = getattr(v, name)
    moved = tuple(one + 1 for one in value) if isinstance(value, tuple) else value + 1
    monkeypatch.setattr(v, name, moved)
    with pytest.raises(EngineError, match=r"laid out differently.*pip install .*unicorn==2\.1\.4"):
        probe._prove_offsets(handle, probe.state_path())


def test_a_state_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch, handle: int) -> None:
    monkeypatch.setattr(v, "SIZE", v.SIZE + 64)
    with pytest.raises(EngineError, match="size of the state"):
        probe._prove_offsets(handle, probe.state_path())


def test_an_engine_that_is_unlike_the_first_is_refused(monkeypatch: pytest.MonkeyPatch, handle: int) -> None:
    pointer, offset = probe.state_path()
    monkeypatch.setattr(probe, "state_path", lambda: (pointer, offset + 8))
    with pytest.raises(EngineError, match=r"laid out differently.*pip install"):
        probe.find_live_state(handle)


def test_a_host_without_proc_is_told_so(monkeypatch: pytest.MonkeyPatch, handle: int) -> None:
    def refuse(*_arguments: object) -> int:
        raise FileNotFoundError("/proc/self/mem")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(EngineError, match="mount /proc"):
        probe._state_path(handle)


def test_the_state_is_found_whatever_points_nearby(handle: int) -> None:
    """More than one pointer may lead to the processor; the path must be the same each time."""
    assert {probe._state_path(handle) for _ in range(3)} == {probe.state_path()}


def test_a_copy_of_the_state_is_not_taken_for_it(handle: int) -> None:
    """What the search has read may lie on the heap, in reach of a pointer."""
    pattern = probe._set_pattern(handle, 0x1357_9BDF_0000_0000)
    copy = ctypes.create_string_buffer(pattern)
    block = probe.find_live_state(handle)
    state = ctypes.addressof(ctypes.c_char.from_buffer(block))
    descriptor = probe._reader()
    try:
        assert probe._following(handle, descriptor, {state, ctypes.addressof(copy)}) == {state}
    finally:
        os.close(descriptor)


LOADED = "mov rax, [rdi + 0x9970]"


@pytest.mark.promise("P-2")
@pytest.mark.parametrize(
    "code",
    [
        "mov rax, rdi\nret",
        f"{LOADED}\ncmp byte ptr [rax + 0x7f2], 1\nret",
        f"{LOADED}\ncmp dword ptr [rax + 0x7f2], 0\nret",
        f"{LOADED}\ncmp byte ptr [rcx + 0x7f2], 0\nret",
        f"{LOADED}\ncmp byte ptr [rax + rcx + 0x7f2], 0\nret",
        f"{LOADED}\ncmp byte ptr [rax + 0x7f2000], 0\nret",
        f"{LOADED}\ntest byte ptr [rax + 0x7f2], 0\nret",
        "mov rax, [rsi + 0x9970]\ncmp byte ptr [rax + 0x7f2], 0\nret",
        "mov eax, [rdi + 0x9970]\ncmp byte ptr [rax + 0x7f2], 0\nret",
        "mov rsp, [rdi + 0x9970]\ncmp byte ptr [rsp + 0x7f2], 0\nret",
        "push rbp\nmov rbp, rsp\nret",
    ],
)
def test_the_switch_is_left_alone_when_anything_looks_different(
    monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    raw = assemble(code, 0).ljust(32, b"\x90")
    monkeypatch.setattr(ctypes, "string_at", lambda _address, _size: raw)
    assert unwrap(probe.find_no_exit_request)() is None


@pytest.mark.parametrize("register", ["rax", "rsi"])
def test_the_switch_is_where_the_function_looks(monkeypatch: pytest.MonkeyPatch, register: str) -> None:
    code = f"mov {register}, [rdi + 0x9970]\ncmp byte ptr [{register} + 0x7f2], 0\nret"
    raw = assemble(code, 0).ljust(32, b"\x90")
    monkeypatch.setattr(ctypes, "string_at", lambda _address, _size: raw)
    assert unwrap(probe.find_no_exit_request)() == 0x7F2


def test_the_switch_is_left_alone_when_the_function_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "symbol_address", lambda _name: None)
    assert unwrap(probe.find_no_exit_request)() is None


# -- the self-test at start-up -----------------------------------------------------------------------------


@pytest.mark.promise("P-2")
def test_the_self_test_passes_and_is_quick() -> None:
    selftest.self_test.cache_clear()
    began = time.perf_counter()
    selftest.self_test()
    assert time.perf_counter() - began < 0.5  # 10 to 20 ms on an idle host
    began = time.perf_counter()
    selftest.self_test()
    assert time.perf_counter() - began < 0.001


@pytest.fixture
def fresh_self_test() -> Iterator[None]:
    selftest.self_test.cache_clear()
    yield
    selftest.self_test.cache_clear()


@pytest.mark.usefixtures("fresh_self_test")
def test_the_self_test_notices_stops_that_repeat_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhv.cpu.engine.Engine._suppress_exit_requests", lambda _engine: True)
    with pytest.raises(EngineError, match=r"waits for the end of the block\)\. .*pip install"):
        selftest.self_test()


@plain_lane("offsets are constants in the code, and the interpreted lane has the same ones")
@pytest.mark.usefixtures("fresh_self_test")
@pytest.mark.parametrize(
    ("name", "value", "promise"),
    [
        ("OLD_EXCEPTION", v.CC_DST * 2, "write a read-only page"),
        ("ERROR_CODE", v.CC_DST * 2, "read a supervisor page"),
        ("HF_BASE64", v.HF_BASE64 & ~v.HF_CS64, "."),
        ("CONDITION_BITS", 0, "flags"),
        ("CC_OP", v.CC_DST * 2, "flags"),
        ("CC_SRC", v.CC_DST, "flags"),
    ],
)
def test_the_self_test_notices_a_wrong_idea_of_the_state(
    monkeypatch: pytest.MonkeyPatch, name: str, value: int, promise: str
) -> None:
    monkeypatch.setattr(v, name, value)
    with pytest.raises(EngineError, match=promise + ".*pip install"):
        selftest.self_test()
