# SPDX-License-Identifier: GPL-2.0-only
"""The FPU and SSE registers: as a FXSAVE area with names, in an engine, and as they are when a vCPU starts.

Everything else of a processor is read and written in its state block (`vmcb.py`). Here that would not do:
the emulator derives rounding modes from FCW and MXCSR when they are loaded, so they go through its public
interface. (Intel SDM volume 1, section 10.5: the FXSAVE area; volume 3, table 10-1: states after reset.)

      0  FCW u16, FSW u16, abridged tags u8, -, FOP u16      32  ST0..ST7, 16 bytes each, of which ten count
      8  FIP u64, FDP u64; or u32 and selector u16 each     160  XMM0..XMM15
     24  MXCSR u32, its mask u32                            511  which form of pointers: Xen's own
"""

import ctypes
import struct
from dataclasses import dataclass, field
from typing import Annotated, Final

from pyhv.abi.layout import u8, u16, u32, u64
from pyhv.cpu import binding

IMAGE_SIZE: Final = 512
_RESET_FCW: Final = 0x037F
_RESET_MXCSR: Final = 0x1F80
_MXCSR_DEFINED: Final = 0xFFFF
_ALL_EMPTY: Final = b"\xff\xff"
"""The full tag word of eight empty registers."""
_WORD_SIZE: Final = 511
"""Offset of a byte that says in which form Xen saved the instruction and data pointers."""
_NARROW: Final = (2, 4)
"""Its values where these are 32-bit ones with selectors."""
_HEAD: Final = struct.Struct("<HHBxHQQII")
_ST_AT, _XMM_AT, _STEP = 32, 160, 16
_ST_SIZE: Final = 10
_ST: Final = tuple(binding.REG[f"ST{n}"] for n in range(8))
_XMM: Final = tuple(binding.REG[f"XMM{n}"] for n in range(16))


@dataclass(slots=True)
class Fxsave:
    """What FXSAVE stores; by default, the state in which Xen 4.17 starts a vCPU, that of FNINIT."""

    fcw: u16 = _RESET_FCW
    fsw: u16 = 0
    ftw: u8 = 0
    """A bit for each physical register that is not empty."""
    fop: u16 = 0
    fip: u64 = 0
    fcs: u16 = 0
    fdp: u64 = 0
    fds: u16 = 0
    mxcsr: u32 = _RESET_MXCSR
    st: Annotated[list[Annotated[bytes, _ST_SIZE]], 8] = field(default_factory=lambda: [bytes(_ST_SIZE)] * 8)
    """ST0..ST7, ten bytes each: relative to the top of stack in FSW."""
    xmm: Annotated[list[Annotated[bytes, _STEP]], 16] = field(default_factory=lambda: [bytes(_STEP)] * 16)
    """XMM0..XMM15, 16 bytes each."""

    @classmethod
    def unpack(cls, image: bytes) -> "Fxsave":
        """From an area of 512 bytes; reserved bits of MXCSR are dropped, as Xen does it.

        The pointers to instruction and operand are 64-bit ones, unless the area's last byte is 2 or 4.
        """
        fcw, fsw, ftw, fop, fip, fdp, mxcsr, _ = _HEAD.unpack_from(image)
        fcs = fds = 0
        if image[_WORD_SIZE] in _NARROW:
            fip, fcs = fip & 0xFFFF_FFFF, fip >> 32 & 0xFFFF
            fdp, fds = fdp & 0xFFFF_FFFF, fdp >> 32 & 0xFFFF
        st = [bytes(image[at : at + _ST_SIZE]) for at in range(_ST_AT, _XMM_AT, _STEP)]
        xmm = [bytes(image[at : at + _STEP]) for at in range(_XMM_AT, _XMM_AT + 16 * _STEP, _STEP)]
        return cls(fcw, fsw, ftw, fop, fip, fcs, fdp, fds, mxcsr & _MXCSR_DEFINED, st, xmm)

    def pack(self) -> bytes:
        """As an area of 512 bytes; with selectors in it if there are any and the pointers leave room."""
        narrow = (self.fcs or self.fds) and not (self.fip | self.fdp) >> 32
        fip, fdp = (self.fip | self.fcs << 32, self.fdp | self.fds << 32) if narrow else (self.fip, self.fdp)
        image = bytearray(IMAGE_SIZE)
        _HEAD.pack_into(
            image, 0, self.fcw, self.fsw, self.ftw, self.fop, fip, fdp, self.mxcsr, _MXCSR_DEFINED
        )
        for at, value in zip(range(_ST_AT, _XMM_AT, _STEP), self.st, strict=True):
            image[at : at + _ST_SIZE] = value
        image[_XMM_AT : _XMM_AT + 16 * _STEP] = b"".join(self.xmm)
        image[_WORD_SIZE] = 4 if narrow else 8
        return bytes(image)


_NUMBERS: Final = (
    ("fcw", binding.REG["FPCW"]),
    ("fsw", binding.REG["FPSW"]),  # before ST, which is relative to its top of stack
    ("fop", binding.REG["FOP"]),
    ("fip", binding.REG["FIP"]),
    ("fcs", binding.REG["FCS"]),
    ("fdp", binding.REG["FDP"]),
    ("fds", binding.REG["FDS"]),
    ("mxcsr", binding.REG["MXCSR"]),
)


def _write(handle: int, register: int, value: bytes) -> None:
    cell = ctypes.create_string_buffer(value, 16)
    binding.check(binding.uc_reg_write(handle, register, cell), "setting an FPU register")


def _read(handle: int, register: int, size: int = 8) -> bytes:
    cell = ctypes.create_string_buffer(16)
    binding.check(binding.uc_reg_read(handle, register, cell), "reading an FPU register")
    return cell.raw[:size]


def reset(handle: int) -> None:
    """What FNINIT does, and MXCSR as after reset: all registers that the x87 unit has are empty."""
    new = Fxsave()
    for name, register in _NUMBERS:
        _write(handle, register, getattr(new, name).to_bytes(8, "little"))
    _write(handle, binding.REG["FPTAG"], _ALL_EMPTY)


def load(handle: int, area: Fxsave) -> None:
    """Load the FPU and SSE registers of an engine."""
    for name, register in _NUMBERS:
        _write(handle, register, getattr(area, name).to_bytes(8, "little"))
    tags = sum(3 << 2 * n for n in range(8) if not area.ftw >> n & 1)
    _write(handle, binding.REG["FPTAG"], tags.to_bytes(8, "little"))
    for register, value in (*zip(_ST, area.st, strict=True), *zip(_XMM, area.xmm, strict=True)):
        _write(handle, register, value)


def save(handle: int) -> Fxsave:
    """The FPU and SSE registers of an engine."""
    numbers = {name: int.from_bytes(_read(handle, register), "little") for name, register in _NUMBERS}
    tags = int.from_bytes(_read(handle, binding.REG["FPTAG"]), "little")
    return Fxsave(
        **numbers,
        ftw=sum(1 << n for n in range(8) if tags >> 2 * n & 3 != 3),
        st=[_read(handle, register, _ST_SIZE) for register in _ST],
        xmm=[_read(handle, register, _STEP) for register in _XMM],
    )
