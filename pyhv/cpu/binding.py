# SPDX-License-Identifier: GPL-2.0-only
"""The few functions of libunicorn that the engine calls, with plain ctypes prototypes.

The package's own Python binding wraps every hook in two Python frames and every register access in a
dispatcher; at a million exits a minute that is most of the hypervisor's time, so the engine talks to the
library itself. The package's constants stand here again, those that pyhv needs: to import them takes 15 ms,
for they come with those of all its architectures. `tests/engine/test_binding.py` compares them with the
package's. This module knows function signatures and numbers, and nothing of what they are used for.
"""

import ctypes
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyhv.errors import EngineError


def _library_path() -> str:
    """Where the package keeps its library; else where the package itself finds one, for whose import (all
    its architectures) there is no other reason.
    """
    package = importlib.util.find_spec("unicorn")
    if package is not None and "LIBUNICORN_PATH" not in os.environ:
        for folder in package.submodule_search_locations or ():
            path = Path(folder, "lib", "libunicorn.so.2")
            if path.is_file():
                return str(path)
    from unicorn.unicorn_py3 import unicorn

    found: str = unicorn.uclib._name
    return found


LIBRARY_PATH: Final = _library_path()
_lib = ctypes.CDLL(LIBRARY_PATH)


HOOK_INTR: Final = 1
HOOK_INSN: Final = 2
HOOK_CODE: Final = 4
HOOK_BLOCK: Final = 8
HOOK_FETCH_PROT: Final = 0x200
HOOK_MEM_READ: Final = 0x400
HOOK_MEM_WRITE: Final = 0x800
HOOK_MEMORY: Final = HOOK_MEM_READ | HOOK_MEM_WRITE
HOOK_INSN_INVALID: Final = 0x4000
HOOK_BLOCK_TRANSLATED: Final = 0x8000
"""The library's name for it is UC_HOOK_EDGE_GENERATED."""
MEM_WRITE: Final = 17
INS_CPUID: Final = 113
INS_IN: Final = 218
INS_OUT: Final = 500
INS_RDTSC: Final = 608
INS_RDTSCP: Final = 609
INS_SYSCALL: Final = 699
INS_SYSENTER: Final = 700
REG: Final = {
    "RAX": 35, "RCX": 38, "RDX": 40, "RBX": 37, "RSP": 44, "RBP": 36, "RSI": 43, "RDI": 39,
    **{f"R{n}": 98 + n for n in range(8, 16)},
    "RIP": 41, "EFLAGS": 25,
    "ES": 28, "CS": 11, "SS": 49, "DS": 17, "FS": 32, "GS": 33, "FS_BASE": 250, "GS_BASE": 251,
    **{f"CR{n}": 50 + n for n in (0, 2, 3, 4)},
    **{f"DR{n}": 66 + n for n in (0, 1, 2, 3, 6, 7)},
    **{f"ST{n}": 114 + n for n in range(8)},
    **{f"XMM{n}": 122 + n for n in range(16)},
    "FPCW": 246, "FPSW": 31, "FPTAG": 247, "FIP": 254, "FCS": 255, "FDP": 256, "FDS": 257, "FOP": 258,
    "MXCSR": 249, "MSR": 248,
}  # fmt: skip
"""Unicorn's register numbers: `UC_X86_REG_` and the name."""
REG_RAX: Final = REG["RAX"]
REG_EFLAGS: Final = REG["EFLAGS"]
REG_CR0: Final = REG["CR0"]
REG_CR3: Final = REG["CR3"]
REG_CR4: Final = REG["CR4"]
REG_MSR: Final = REG["MSR"]
GENERAL_REGISTERS: Final = tuple(REG.values())[:16]
"""In the processor's own order."""

CB_INTR: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
CB_INVALID: Final = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)
CB_INSN: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
CB_CPUID: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
CB_IN: Final = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p
)
CB_OUT: Final = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p
)
CB_MEMORY: Final = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)
CB_FETCH: Final = ctypes.CFUNCTYPE(
    ctypes.c_bool,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_void_p,
)
CB_BLOCK: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)


class TranslatedBlock(ctypes.Structure):
    """`uc_tb`: linear address, instructions and bytes of a block that has just been translated."""

    _fields_ = (("pc", ctypes.c_uint64), ("instructions", ctypes.c_uint16), ("size", ctypes.c_uint16))


CB_TRANSLATED: Final = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.POINTER(TranslatedBlock), ctypes.c_void_p, ctypes.c_void_p
)
"""The second block is the one executed before."""


class MsrAccess(ctypes.Structure):
    """`uc_x86_msr`: number and value for accesses through `REG_MSR`."""

    _fields_ = (("rid", ctypes.c_uint32), ("value", ctypes.c_uint64))


_u64 = ctypes.c_uint64
_ptr = ctypes.c_void_p

uc_open = _lib.uc_open
uc_open.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(_ptr))
uc_close = _lib.uc_close
uc_close.argtypes = (_ptr,)
uc_strerror = _lib.uc_strerror
uc_strerror.argtypes, uc_strerror.restype = (ctypes.c_int,), ctypes.c_char_p
uc_emu_start = _lib.uc_emu_start
uc_emu_start.argtypes = (_ptr, _u64, _u64, _u64, ctypes.c_size_t)
uc_emu_stop = _lib.uc_emu_stop
uc_emu_stop.argtypes = (_ptr,)
uc_mem_map_ptr = _lib.uc_mem_map_ptr
uc_mem_map_ptr.argtypes = (_ptr, _u64, _u64, ctypes.c_uint32, _ptr)
uc_mem_unmap = _lib.uc_mem_unmap
uc_mem_unmap.argtypes = (_ptr, _u64, _u64)
uc_reg_read = _lib.uc_reg_read
uc_reg_read.argtypes = (_ptr, ctypes.c_int, _ptr)
uc_reg_write = _lib.uc_reg_write
uc_reg_write.argtypes = (_ptr, ctypes.c_int, _ptr)
_held = ctypes.PyDLL(LIBRARY_PATH)
fast_reg_read = _held.uc_reg_read
fast_ctl = _held.uc_ctl
"""The two calls of the hot paths: without argument conversion (pass ctypes objects) and without giving up the
interpreter lock; half the price of the ordinary ones."""
uc_hook_add = _lib.uc_hook_add
uc_hook_del = _lib.uc_hook_del
uc_hook_del.argtypes = (_ptr, ctypes.c_size_t)
uc_ctl = _lib.uc_ctl
uc_context_alloc = _lib.uc_context_alloc
uc_context_alloc.argtypes = (_ptr, ctypes.POINTER(_ptr))
uc_context_save = _lib.uc_context_save
uc_context_save.argtypes = (_ptr, _ptr)
uc_context_restore = _lib.uc_context_restore
uc_context_restore.argtypes = (_ptr, _ptr)
uc_context_free = _lib.uc_context_free
uc_context_free.argtypes = (_ptr,)
uc_context_size = _lib.uc_context_size
uc_context_size.argtypes, uc_context_size.restype = (_ptr,), ctypes.c_size_t

_tb_invalidate = getattr(_lib, "tb_invalidate_phys_range_x86_64", None)
if _tb_invalidate is not None:
    _tb_invalidate.argtypes = (_ptr, _u64, _u64)
    _tb_invalidate.restype = None
tb_invalidate_phys_range: Callable[[int, int, int], None] | None = _tb_invalidate
"""Drop translations of a range of physical addresses: exported by the wheel, not part of the public API."""

_raise_exception = getattr(_lib, "raise_exception_err_x86_64", None)
raise_exception_address: int | None = (
    None if _raise_exception is None else ctypes.cast(_raise_exception, ctypes.c_void_p).value
)
"""Address of the function (state block, vector, error code) that leaves a translation; not public."""

fast_tlb_flush_page = getattr(_held, "tlb_flush_page_x86_64", None)
"""Forget one page's translation, given the processor's and the page's address; exported, not public."""

_insert = getattr(_lib, "cpu_breakpoint_insert_x86_64", None)
_remove = getattr(_lib, "cpu_breakpoint_remove_x86_64", None)
if _insert is not None and _remove is not None:
    _insert.argtypes = (_ptr, _u64, ctypes.c_int, _ptr)
    _remove.argtypes = (_ptr, _u64, ctypes.c_int)
cpu_breakpoint_insert: Callable[[int, int, int, None], object] | None = _insert
"""End translated code at a linear address, for (processor, address, flags, None); not public."""
cpu_breakpoint_remove: Callable[[int, int, int], object] | None = _remove
"""... and no more. Either drops all translations."""

EMU_STOP_ADDRESS: Final[int] = ctypes.cast(_lib.uc_emu_stop, _ptr).value or 0
"""Where `uc_emu_stop` is in this process: the native block clock jumps there."""
REG_READ_ADDRESS: Final[int] = ctypes.cast(_lib.uc_reg_read, _ptr).value or 0
"""The same of `uc_reg_read`."""


def symbol_address(name: str) -> int | None:
    """Address of an exported symbol of the library, None if this build does not export it."""
    try:
        return ctypes.cast(getattr(_lib, name), _ptr).value
    except AttributeError:
        return None


def _control(kind: int, arguments: int) -> int:
    """The word by which `uc_ctl` is told to write, with so many arguments."""
    return kind | arguments << 26 | 1 << 30


ARCH_X86: Final = 4
MODE_64: Final = 8
TLB_CPU: Final = 0
CPU_SANDY_BRIDGE: Final = 17
CTL_CPU_MODEL: Final = _control(7, 1)
CTL_FLUSH_TB: Final = _control(10, 0)
CTL_TLB_FLUSH: Final = _control(11, 0)
CTL_TLB_TYPE: Final = _control(12, 1)
CTL_TCG_BUFFER_SIZE: Final = _control(13, 1)
CTL_USE_EXITS: Final = _control(4, 1)


def check(code: int, doing: str) -> None:
    """Raise EngineError if the library returned an error code."""
    if code:
        text = uc_strerror(code).decode()
        raise EngineError(
            f"The emulator failed while {doing}: {text}. Reinstall unicorn 2.1.4 or newer (2.x)."
        )
