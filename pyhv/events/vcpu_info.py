# SPDX-License-Identifier: GPL-2.0-only
"""The `vcpu_info` of a vCPU: the record in which guest and hypervisor tell each other what is pending.

`struct vcpu_info` of the public header `xen.h`, 64 bytes (offsets in `abi/shared.py`):

    upcall_pending    u8      there are events: "call the event callback"
    upcall_mask       u8      the guest's interrupt flag, inverted
    pending_sel       long    one bit a word of shared_info's evtchn_pending
    arch.cr2          long    where the last page fault was
    time              32      the vCPU's pvclock record

It is in the vCPU's slot of shared_info until the guest chooses another place, once. This module is the only
one that knows where it is.
"""

import struct
from collections.abc import Mapping
from typing import ClassVar, Final

from pyhv.abi.errno import Errno
from pyhv.abi.layout import u16
from pyhv.abi.shared import (
    MAX_LEGACY_VCPUS,
    SHARED_LAYOUT,
    SI_VCPU_INFO,
    TI_SIZE,
    VCPU_INFO_SIZE,
    VI_TIME,
    VI_UPCALL_MASK,
    VI_UPCALL_PENDING,
)
from pyhv.address import MASK32, MASK64, PAGE_SIZE, Mfn
from pyhv.cpu.words import octets
from pyhv.errors import XenError
from pyhv.frozen import frozen
from pyhv.shared_page import SharedPage
from pyhv.state import Plain, construct, refusal

_PENDING: Final = VI_UPCALL_PENDING
_MASK: Final = VI_UPCALL_MASK
_TIME: Final = struct.Struct("<IIQQIbBxx")


class VcpuInfo:
    """One vCPU's record, wherever it is. The caller touches it only while no engine executes that domain."""

    __slots__ = (
        "_cr2",
        "_mask_at",
        "_sel",
        "_shared_info",
        "flags",
        "moved",
        "number",
        "offset",
        "page",
        "record",
        "width",
    )
    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("_shared_info", "number", "width"), "the domain's builder"),
        **dict.fromkeys(("_cr2", "_sel"), "follows from the width"),
        **dict.fromkeys(
            ("_mask_at", "flags", "offset", "page", "record"), "follows from the place, which `moved` says"
        ),
    }

    def __init__(self, shared_info: SharedPage, number: int, width: int) -> None:
        if not 0 <= number < MAX_LEGACY_VCPUS:
            raise ValueError(f"shared_info has no slot for vCPU {number}")
        self.number = number
        self.width = width
        """Bits of the guest's `unsigned long`."""
        self._sel = SHARED_LAYOUT[width].pending_sel
        self._cr2 = SHARED_LAYOUT[width].cr2
        self._shared_info = shared_info
        self.moved = False
        """It is in a page of the guest's choice, which then holds a writable reference for it."""
        self._put_into_slot()

    def _put_into_slot(self) -> None:
        self._put(self._shared_info, SI_VCPU_INFO + VCPU_INFO_SIZE * self.number)

    def _put(self, page: SharedPage, offset: int) -> None:
        self.page = page
        self.offset = offset
        """Of its first byte in the page."""
        self.record = page.window(offset, VCPU_INFO_SIZE)
        """Its bytes, for reading. Every exit looks whether `record[0] and not record[1]`: `deliverable`."""
        self.flags = octets(self.record)
        """The same, for those that may be compiled."""
        self._mask_at = offset + _MASK

    # -- upcalls -----------------------------------------------------------------------------------------

    @property
    def upcall_pending(self) -> bool:
        """Some event waits for this vCPU."""
        return self.record[_PENDING] != 0

    def mark_pending(self) -> bool:
        """Set the upcall flag; True if it was clear."""
        if self.record[_PENDING]:
            return False
        self.page.write_u8(self.offset + _PENDING, 1)
        return True

    @property
    def upcall_masked(self) -> bool:
        """The guest's interrupt flag, inverted: it wants no upcalls now."""
        return self.record[_MASK] != 0

    @upcall_masked.setter
    def upcall_masked(self, masked: bool) -> None:
        self.mask_upcalls(masked)

    def mask_upcalls(self, masked: bool) -> None:
        """Set or clear that flag."""
        self.page.write_u8(self._mask_at, masked)

    @property
    def deliverable(self) -> bool:
        """An event is pending and upcalls are not masked: the event callback is to be entered."""
        flags = self.flags
        return flags[_PENDING] != 0 and flags[_MASK] == 0

    def select(self, word: int) -> bool:
        """Set a bit of `pending_sel`: that word of pending bits has something. True if it was clear."""
        at, bit = self._sel + word // 8, 1 << word % 8
        byte = self.record[at]
        if byte & bit:
            return False
        self.page.write_u8(self.offset + at, byte | bit)
        return True

    # -- the rest ----------------------------------------------------------------------------------------

    @property
    def cr2(self) -> int:
        """The virtual CR2."""
        size = self.width // 8
        return int.from_bytes(self.record[self._cr2 : self._cr2 + size], "little")

    @cr2.setter
    def cr2(self, value: int) -> None:
        if self.width == 64:
            self.page.write_u64(self.offset + self._cr2, value & MASK64)
        else:
            self.page.write_u32(self.offset + self._cr2, value & MASK32)

    def write_time(self, tsc: int, now: int, mul: int, shift: int, *, stable: bool) -> bytes:
        """Store the pvclock record, whose version is odd meanwhile; the record as it is then.

        At the time-stamp counter `tsc` it is `now` ns; `mul` and `shift` turn ticks into ns.
        """
        at = self.offset + VI_TIME
        version = self.page.read_u32(at) | 1
        fields = (0, tsc, now, mul, shift, int(stable))
        self.page.write(at, _TIME.pack(version, *fields))
        version = version + 1 & MASK32
        self.page.write_u32(at, version)
        return bytes(self.record[VI_TIME : VI_TIME + TI_SIZE])

    # -- its place ---------------------------------------------------------------------------------------

    def check_place(self, offset: int) -> None:
        """VCPUOP_register_vcpu_info's own checks: ENXIO for a bad offset, EBUSY the second time.

        The caller runs it before it takes a reference to the page, and answers for the page itself.
        """
        if not 0 <= offset <= PAGE_SIZE - VCPU_INFO_SIZE:
            raise XenError(Errno.ENXIO, f"vcpu_info at offset {offset} crosses the end of its page")
        if offset % (self.width // 8):
            raise XenError(Errno.ENXIO, f"vcpu_info at offset {offset} is not aligned")
        if self.moved:
            raise XenError(Errno.EBUSY, f"vCPU {self.number} has registered its vcpu_info already")

    def move(self, page: SharedPage, offset: int) -> None:
        """Move the record, contents included, and mark every word as having something pending.

        The spurious upcall makes sure that no event is lost between the old place and the new. Wake the
        vCPU afterwards. Raises as `check_place` does.
        """
        self.check_place(offset)
        page.write(offset, bytes(self.record))
        page.write(offset + self._sel, b"\xff" * (self.width // 8))
        page.write_u8(offset + _PENDING, 1)
        self._put(page, offset)
        self.moved = True

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Plain]:
        """Its place, if the guest has chosen one; the record itself is in memory."""
        return {"moved": [self.page.mfn, self.offset] if self.moved else None}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Have the place that was saved; references to frames are restored apart. StateError."""
        place = construct(_Saved, dict(saved)).moved
        if place is None:
            self.moved = False
            self._put_into_slot()
            return
        page, offset = self._shared_info.elsewhere(place[0]), place[1]
        if page is None or offset > PAGE_SIZE - VCPU_INFO_SIZE or offset % (self.width // 8):
            raise refusal("moved", f"is offset {offset} of frame {place[0]}, where no vcpu_info can be")
        self.moved = True
        self._put(page, offset)


@frozen
class _Saved:
    """The state of a `vcpu_info`'s place: None while it is in the shared page."""

    moved: tuple[Mfn, u16] | None
