# SPDX-License-Identifier: GPL-2.0-only
"""The hypercall page of a 64-bit guest (public header `arch-x86/xen-x86_64.h`): 128 stubs of 32 bytes.

    push %rcx; push %r11; mov $nr, %eax; syscall; pop %r11; pop %rcx; ret
and for iret, which does not come back,
    push %rcx; push %r11; push %rax; mov $23, %eax; syscall
"""

import struct
from typing import Final

STUB_SIZE: Final = 32
STUBS: Final = 128
IRET: Final = 23


def _stub(number: int) -> bytes:
    if number == IRET:
        code = b"\x51\x41\x53\x50\xb8" + struct.pack("<I", number) + b"\x0f\x05"
    else:
        code = b"\x51\x41\x53\xb8" + struct.pack("<I", number) + b"\x0f\x05\x41\x5b\x59\xc3"
    return code.ljust(STUB_SIZE, b"\xcc")


HYPERCALL_PAGE: Final = b"".join(_stub(number) for number in range(STUBS))
