# SPDX-License-Identifier: GPL-2.0-only
"""The FPU and SSE registers of an engine: the state that a vCPU starts with, and loading a FXSAVE image.

Everything else of a processor is read and written in its state block (`vmcb.py`). Here that would not do:
the emulator derives rounding modes from FCW and MXCSR when they are loaded, so they go through its public
interface. (Intel SDM volume 1, section 10.5: the FXSAVE area; volume 3, table 10-1: states after reset.)
"""

import ctypes
import struct
from typing import Final

from unicorn import x86_const

from pyhv.cpu import binding

IMAGE_SIZE: Final = 512
_RESET_FCW: Final = 0x037F
_RESET_MXCSR: Final = 0x1F80
_ALL_EMPTY: Final = 0xFFFF
"""The full tag word of eight empty registers."""
_MXCSR_DEFINED: Final = 0xFFFF
_WORD_SIZE: Final = 511
"""Offset of a byte that says in which form Xen saved the instruction and data pointers."""
_ST: Final = tuple(getattr(x86_const, f"UC_X86_REG_ST{n}") for n in range(8))
_XMM: Final = tuple(getattr(x86_const, f"UC_X86_REG_XMM{n}") for n in range(16))


def _write(handle: int, register: int, value: bytes) -> None:
    cell = ctypes.create_string_buffer(value, 16)
    binding.check(binding.uc_reg_write(handle, register, cell), "setting an FPU register")


def _write_number(handle: int, register: int, value: int) -> None:
    _write(handle, register, value.to_bytes(8, "little"))


def reset(handle: int) -> None:
    """Put the FPU into the state in which Xen 4.17 starts a vCPU, that of FNINIT."""
    _write_number(handle, x86_const.UC_X86_REG_FPCW, _RESET_FCW)
    _write_number(handle, x86_const.UC_X86_REG_FPSW, 0)
    _write_number(handle, x86_const.UC_X86_REG_FPTAG, _ALL_EMPTY)
    _write_number(handle, x86_const.UC_X86_REG_MXCSR, _RESET_MXCSR)


def load(handle: int, image: bytes) -> None:
    """Load a FXSAVE image of 512 bytes; reserved bits of MXCSR are dropped, as Xen does it.

    The pointers to instruction and operand are 64-bit ones, unless the image's last byte is 2 or 4: then they
    are 32-bit ones with selectors.
    """
    fcw, fsw, abridged, _, fop, fip, fdp, mxcsr = struct.unpack_from("<HHBBHQQI", image)
    fcs = fds = 0
    if image[_WORD_SIZE] in (2, 4):
        fip, fcs = fip & 0xFFFF_FFFF, fip >> 32 & 0xFFFF
        fdp, fds = fdp & 0xFFFF_FFFF, fdp >> 32 & 0xFFFF
    tags = sum(3 << 2 * n for n in range(8) if not abridged >> n & 1)
    for register, value in (
        (x86_const.UC_X86_REG_FPCW, fcw),
        (x86_const.UC_X86_REG_FPSW, fsw),  # before ST, which is relative to its top of stack
        (x86_const.UC_X86_REG_FPTAG, tags),
        (x86_const.UC_X86_REG_FOP, fop),
        (x86_const.UC_X86_REG_FIP, fip),
        (x86_const.UC_X86_REG_FCS, fcs),
        (x86_const.UC_X86_REG_FDP, fdp),
        (x86_const.UC_X86_REG_FDS, fds),
        (x86_const.UC_X86_REG_MXCSR, mxcsr & _MXCSR_DEFINED),
    ):
        _write_number(handle, register, value)
    for number, register in enumerate(_ST):
        at = 32 + 16 * number
        _write(handle, register, image[at : at + 10])
    for number, register in enumerate(_XMM):
        at = 160 + 16 * number
        _write(handle, register, image[at : at + 16])
