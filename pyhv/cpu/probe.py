# SPDX-License-Identifier: GPL-2.0-only
"""Start-up proofs: where this emulator keeps its state, and that it behaves as pyhv relies on.

pyhv reads registers straight from the emulator's memory and switches off a per-access check inside it. Both
depend on the very build of libunicorn, so nothing is taken on faith: the state block is found by writing
distinct values through the public interface and looking for them. Of the offsets in `vmcb.py` those of
registers that this interface shows are then compared: instruction pointer, flags, control and debug
registers, selectors, the bases of FS and GS. The others - hidden parts, privilege, error codes - are what
`selftest.py` runs on. What does not match is an `EngineError` that says what to install.
"""

import ctypes
import os
import struct
from typing import Final

from pyhv.cpu import binding
from pyhv.cpu import vmcb as v
from pyhv.cpu.once import once
from pyhv.errors import EngineError

REMEDY: Final = "pyhv was built on unicorn 2.1.4: pip install --force-reinstall 'unicorn==2.1.4'."
_STRUCT_WORDS: Final = 512
_SEARCH: Final = 0x10000
_SP: Final = 4
"""As a base it stands for another encoding (Intel SDM volume 2, table 2-2)."""


def _reader() -> int:
    """A descriptor through which any address may be read without the risk of a fault."""
    try:
        return os.open("/proc/self/mem", os.O_RDONLY)
    except OSError as error:
        raise EngineError(f"pyhv needs to read /proc/self/mem ({error}); mount /proc.") from error


def _set_general_registers(handle: int, values: list[int]) -> None:
    for register, value in zip(binding.GENERAL_REGISTERS, values, strict=True):
        cell = ctypes.c_uint64(value)
        binding.uc_reg_write(handle, register, ctypes.byref(cell))


def _set_pattern(handle: int, base: int) -> bytes:
    """Give the general registers values of their own; returns how these lie in memory."""
    values = [base | n << 8 | 0xA5 for n in range(16)]
    _set_general_registers(handle, values)
    return struct.pack("<16Q", *values)


def _following(handle: int, descriptor: int, places: set[int]) -> set[int]:
    """Those addresses at which the registers are, and not a copy of what they were.

    The heap may hold one, left over from the search itself.
    """
    pattern = _set_pattern(handle, 0x2468_ACE0_0000_0000)
    return {place for place in places if os.pread(descriptor, len(pattern), place) == pattern}


def _state_path(handle: int) -> tuple[int, int]:
    """(offset of the processor pointer in the engine, offset of the state block in the processor).

    Other pointers in the engine may happen to lie a little below the processor on the heap, and the pattern
    is then found through them too. The nearest one points at the processor itself (or into it), whatever
    the heap looks like.
    """
    pattern = _set_pattern(handle, 0x1357_9BDF_0000_0000)
    candidates: list[tuple[int, int, int]] = []
    descriptor = _reader()
    try:
        words = struct.unpack(f"<{_STRUCT_WORDS}Q", os.pread(descriptor, _STRUCT_WORDS * 8, handle))
        for index, word in enumerate(words):
            if not 0x1000 <= word < 1 << 47:
                continue
            try:
                block = os.pread(descriptor, _SEARCH, word)
            except OSError:  # not a pointer
                continue
            at = block.find(pattern)
            if at >= 0:
                candidates.append((at, index * 8, word + at))
        places = _following(handle, descriptor, {address for _, _, address in candidates})
    finally:
        os.close(descriptor)
    _set_general_registers(handle, [0] * 16)
    if len(places) != 1:
        raise EngineError(
            f"The emulator keeps its registers in {len(places)} places instead of one. {REMEDY}"
        )
    at, pointer, _ = min(candidate for candidate in candidates if candidate[2] in places)
    return pointer, at


@once
def state_path() -> tuple[int, int]:
    """(offset of the processor pointer in the engine, offset of the state block in the processor), found and
    proved with a throwaway engine. EngineError.
    """
    handle = ctypes.c_void_p()
    binding.check(
        binding.uc_open(binding.ARCH_X86, binding.MODE_64, ctypes.byref(handle)), "creating an engine"
    )
    try:
        path = _state_path(handle.value or 0)
        _prove_offsets(handle.value or 0, path)
    finally:
        binding.uc_close(handle)
    return path


def find_live_state(handle: int) -> memoryview:
    """A writable view of the processor's state block inside a running engine.

    EngineError if this engine does not keep it where others of this process do.
    """
    block = _view(handle, state_path())
    mark = 0x2468_ACE0_1357_9BDF
    cell = ctypes.c_uint64(mark)
    binding.uc_reg_write(handle, binding.REG_RAX, ctypes.byref(cell))
    if struct.unpack_from("<Q", block)[0] != mark:
        raise EngineError(f"Two engines of the emulator are laid out differently. {REMEDY}")
    binding.uc_reg_write(handle, binding.REG_RAX, ctypes.byref(ctypes.c_uint64()))
    return block


def processor_address(handle: int) -> int:
    """Address of an engine's processor object (`CPUState`), once `find_live_state` has proved where it is."""
    return ctypes.c_uint64.from_address(handle + state_path()[0]).value


def _view(handle: int, path: tuple[int, int]) -> memoryview:
    pointer, offset = path
    processor = ctypes.c_uint64.from_address(handle + pointer).value
    block = (ctypes.c_char * v.SIZE).from_address(processor + offset)
    return memoryview(block).cast("B")


def _prove_offsets(handle: int, path: tuple[int, int]) -> None:
    """Check the offsets of `vmcb.py` against the public register interface and the saved context."""
    state = v.Vmcb(_view(handle, path))
    wrong: list[str] = []

    def agree(name: str, seen: int, expected: int) -> None:
        if seen != expected:
            wrong.append(name)

    context = ctypes.c_void_p()
    binding.check(binding.uc_context_alloc(handle, ctypes.byref(context)), "allocating a context")
    binding.check(binding.uc_context_save(handle, context), "saving a context")
    saved = ctypes.string_at(context.value or 0, binding.uc_context_size(handle))
    binding.uc_context_free(context)
    agree("size of the state", bytes(state.raw) in saved, True)

    words = [("RIP", v.RIP), ("FS_BASE", v.SEG_BASE[v.FS]), ("GS_BASE", v.SEG_BASE[v.GS])]
    words += [(f"CR{n}", v.CR + n) for n in (0, 2, 3, 4)] + [(f"DR{n}", v.DR + n) for n in (0, 1, 2, 3, 6, 7)]
    selectors = [(name, v.SEG_SEL[n]) for n, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS"))]
    for view, registers in ((state.q, words), (state.d, selectors)):
        for name, index in registers:
            before = view[index]
            view[index] = 0x2340 + index
            cell = ctypes.c_uint64()
            binding.uc_reg_read(handle, binding.REG[name], ctypes.byref(cell))
            agree(name, cell.value, 0x2340 + index)
            view[index] = before
    state.set_rflags(0x202 | 0x8D5 | 0x400)
    cell = ctypes.c_uint64()
    binding.uc_reg_read(handle, binding.REG_EFLAGS, ctypes.byref(cell))
    agree("flags", cell.value, 0x202 | 0x8D5 | 0x400)
    state.set_rflags(0x202)
    if wrong:
        raise EngineError(f"The emulator's state is laid out differently ({', '.join(wrong)}). {REMEDY}")


@once
def find_no_exit_request() -> int | None:
    """Offset of the switch that drops the stop check after each memory access, None if not certain.

    The exported function `check_exit_request_x86_64` begins so, and only exactly these two instructions are
    believed:

        48 8b 10rrr111 disp32          mov reg, [rdi + disp32]             the engine's address
        80    10111rrr disp32 00       cmp byte ptr [reg + disp32], 0      the switch
    """
    address = binding.symbol_address("check_exit_request_x86_64")
    if address is None:
        return None
    code = ctypes.string_at(address, 14)
    register = code[2] >> 3 & 7
    if code[:2] != b"\x48\x8b" or code[2] & 0o307 != 0o207 or register == _SP:
        return None
    if code[7:9] != bytes([0x80, 0o270 | register]) or code[13]:
        return None
    offset = int.from_bytes(code[9:13], "little")
    return offset if 0 < offset < _STRUCT_WORDS * 8 else None
