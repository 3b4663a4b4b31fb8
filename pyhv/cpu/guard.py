# SPDX-License-Identifier: GPL-2.0-only
"""No guest code ends the process: where the emulator would call `abort`, the guest gets #UD.

Unicorn 2.1.4 aborts when it translates `LOCK BT`, `BTS`, `BTR` or `BTC` with a register operand, two bytes
and a prefix that any process may execute. On hardware that is #UD. So the library's own pointer to `abort`
(its slot in the procedure linkage table) is led to eight instructions that raise #UD in the engine that is
running, the way the emulator leaves a translation that hits an unmapped page, and to the real `abort` when
none runs. Specified by nothing but that build; where it does not fit - another host, no such slot, the
emulator's own functions not exported - nothing is changed and `guard` says so.
"""

import ctypes
import functools
import mmap
import platform

import keystone

from pyhv.cpu import binding
from pyhv.cpu.slots import library

_UD = 6

_CODE = """
    movabs rax, {cell}
    mov rdi, [rax]
    test rdi, rdi
    jz really
    mov esi, {vector}
    xor edx, edx
    movabs rax, {raise_exception}
    jmp rax
really:
    movabs rax, {abort}
    jmp rax
"""


class Guard:
    """`running[0]` is the address of the state block of the engine that executes guest code, 0 if none does.

    `active`: an abort meanwhile becomes #UD.
    """

    def __init__(self) -> None:
        self._cell = ctypes.c_uint64(0)
        self.running = memoryview(self._cell).cast("B").cast("Q")
        self._code: mmap.mmap | None = None
        self.active = self._install()

    def _install(self) -> bool:
        raise_exception = binding.raise_exception_address
        if platform.machine() != "x86_64" or raise_exception is None:
            return False
        slot = library().slot("abort")
        if slot is None:
            return False
        source = _CODE.format(
            cell=ctypes.addressof(self._cell), vector=_UD, raise_exception=raise_exception,
            abort=ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value,
        )  # fmt: skip
        try:
            code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError:
            return False
        encoding, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(source)
        code.write(bytes(encoding))
        self._code = code
        slot.value = ctypes.addressof(ctypes.c_char.from_buffer(code))
        return True


@functools.cache
def guard() -> Guard:
    """The process's guard, installed at the first call."""
    return Guard()
