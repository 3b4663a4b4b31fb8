# SPDX-License-Identifier: GPL-2.0-only
"""No guest code ends the process: where the emulator would call `abort`, the guest gets #UD.

Unicorn 2.1.4 aborts when it translates `LOCK BT`, `BTS`, `BTR` or `BTC` with a register operand, two bytes
and a prefix that any process may execute. On hardware that is #UD. So the library's own pointer to `abort`
(its slot in the procedure linkage table) is led to a few instructions that raise #UD in the engine that the
calling thread executes (`stops.py` notes which), the way the emulator leaves a translation that hits an
unmapped page, and to the real `abort` when it executes none. Specified by nothing but that build; where it
does not fit - another host, no such slot, the emulator's own functions not exported - nothing is changed and
`guard` says so.
"""

import ctypes
import mmap
from typing import Final

from pyhv.cpu import binding
from pyhv.cpu.native_code import templates
from pyhv.cpu.once import once
from pyhv.cpu.slots import library
from pyhv.cpu.stops import posted_stops

_UD: Final = 6

_CODE: Final = """
    xor edx, edx
    mov rdx, fs:[rdx]
    movabs rax, {first}
look:
    mov rax, [rax + 8]
    test rax, rax
    jz really
    cmp [rax + 40], rdx
    jne look
    inc qword ptr [rax + 48]
    mov rdi, [rax + 32]
    mov esi, {vector}
    xor edx, edx
    movabs rax, {raise_exception}
    jmp rax
really:
    movabs rax, {abort}
    jmp rax
"""


def _install(slot: ctypes.c_uint64, first_seat: int, raise_exception: int) -> mmap.mmap:
    """Lead the slot to new native code; the page with it, which must live as long as the process."""
    (template,) = templates("guard", _CODE, constants={"vector": _UD})
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value or 0
    code = template.link(0, {"first": first_seat, "raise_exception": raise_exception, "abort": abort})
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    slot.value = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return page


@once
def guard() -> mmap.mmap | None:
    """Guard the process, at the first call; the native code that does it, None where that cannot be."""
    stops, slot = posted_stops(), library().slot("abort")
    raise_exception = binding.raise_exception_address
    if stops is None or slot is None or raise_exception is None:
        return None
    return _install(slot, stops.first_seat, raise_exception)
