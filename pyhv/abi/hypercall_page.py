# SPDX-License-Identifier: GPL-2.0-only
"""The hypercall page (public headers `arch-x86/xen-x86_64.h` and `xen-x86_32.h`): 128 stubs of 32 bytes.

64-bit:
    push %rcx; push %r11; mov $nr, %eax; syscall; pop %r11; pop %rcx; ret
and for iret, which does not come back,
    push %rcx; push %r11; push %rax; mov $23, %eax; syscall

32-bit:
    mov $nr, %eax; int $0x82; ret           and for iret   push %eax; mov $23, %eax; int $0x82
"""

import struct
from collections.abc import Callable
from typing import Final

from pyhv.abi.numbers import Hypercall

STUB_SIZE: Final = 32
STUBS: Final = 128


def _stub64(number: int) -> bytes:
    if number == Hypercall.IRET:
        return b"\x51\x41\x53\x50\xb8" + struct.pack("<I", number) + b"\x0f\x05"
    return b"\x51\x41\x53\xb8" + struct.pack("<I", number) + b"\x0f\x05\x41\x5b\x59\xc3"


def _stub32(number: int) -> bytes:
    if number == Hypercall.IRET:
        return b"\x50\xb8" + struct.pack("<I", number) + b"\xcd\x82"
    return b"\xb8" + struct.pack("<I", number) + b"\xcd\x82\xc3"


def _page(stub: Callable[[int], bytes]) -> bytes:
    return b"".join(stub(number).ljust(STUB_SIZE, b"\xcc") for number in range(STUBS))


HYPERCALL_PAGE64: Final = _page(_stub64)
HYPERCALL_PAGE32: Final = _page(_stub32)


def hypercall_page(width: int) -> bytes:
    """The page's 4096 bytes for a guest of `width` bits."""
    return HYPERCALL_PAGE64 if width == 64 else HYPERCALL_PAGE32
