# SPDX-License-Identifier: GPL-2.0-only
"""Segment descriptors of a guest: what Xen lets into a GDT or LDT, and how one is loaded.

    63..56   55 54 53 52  51..48   47 46..45 44 43..40  39..16      15..0
    base3    G  DB L  AVL limit2   P  DPL    S  type    base 23..0  limit 15..0

A descriptor page is approved as a whole when a frame becomes type SEGDESC. Rules: not present, anything
goes; DPL is raised to that of the guest's kernel (3, in a 32-bit guest 1); code and data are welcome, and
marked accessed, because the processor reads them through a read-only mapping and could not do it itself; of
the system types only call gates, disarmed to DPL 0. A 32-bit guest may not have 64-bit code; a flat segment
that ends where older hypervisors began is extended to 4 GiB, so that it covers the M2P. (Intel SDM volume
3, section 3.4.5; Xen's checks.) The module reads no guest memory.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pyhv.abi.x86 import FIRST_RESERVED_GDT_ENTRY
from pyhv.address import COMPAT_VIRT_START

PRESENT: Final = 1 << 47
DPL: Final = 3 << 45
S: Final = 1 << 44
CODE: Final = 1 << 43
ACCESSED: Final = 1 << 40
_TYPE_SHIFT: Final = 40
_CALL_GATE: Final = 0xC
LONG: Final = 1 << 53
DEFAULT_BIG: Final = 1 << 54
CONFORMING = _EXPAND_DOWN = 1 << 42
WRITABLE_DATA = READABLE_CODE = 1 << 41
_WHOLE_LIMIT: Final = 0x000F_0000_0000_FFFF


def fix_descriptor(value: int, width: int = 64) -> int | None:
    """The descriptor as a guest of `width` bits may store it, or None if it may not have it."""
    if not value & PRESENT:
        return value
    ring = 3 if width == 64 else 1
    dpl = max(value >> 45 & 3, ring) << 45
    if value & S:
        if width == 32:
            if value & LONG:
                return None
            value = _extend(value)
        return value & ~DPL | dpl | ACCESSED
    kind = value >> _TYPE_SHIFT & 0xF
    if kind == 0:
        return value & ~DPL | dpl
    if kind != _CALL_GATE:
        return None
    target = value >> 16 & 0xFFFC
    if target and not _is_guest_selector(target, width):
        return None
    if value >> 32 & (0xFF if width == 64 else 0xE0):
        return None
    return value & ~DPL & ~(3 << 16) | dpl >> 29


def _extend(value: int) -> int:
    """A segment from 0 to beyond the start of the hypervisor's part covers all of it."""
    base, limit, _ = decode(value)
    return value | _WHOLE_LIMIT if base == 0 and limit + 1 > COMPAT_VIRT_START else value


def _is_guest_selector(selector: int, width: int) -> bool:
    """Whether a gate may lead there: the guest's part of the GDT, the LDT, or a flat segment of the guest."""
    if selector & 4 or selector >> 3 < FIRST_RESERVED_GDT_ENTRY:
        return True
    return selector & ~7 in ((0xE020, 0xE028, 0xE030) if width == 64 else (0xE018, 0xE028))


def approve_page(row: npt.NDArray[np.uint64], width: int = 64) -> list[tuple[int, int]] | None:
    """Check all descriptors of a frame: (slot, what has to be there) of the present; None if one is bad."""
    present = np.flatnonzero((row & np.uint64(PRESENT)) != 0)
    fixed: list[tuple[int, int]] = []
    for index in present.tolist():
        value = fix_descriptor(int(row[index]), width)
        if value is None:
            return None
        fixed.append((index, value))
    return fixed


class Segment(NamedTuple):
    """A loaded segment register's hidden part: base, limit in bytes, the descriptor's high dword."""

    base: int
    limit: int
    flags: int

    def holds(self, offset: int, size: int) -> bool:
        """Whether `size` bytes from `offset` lie within the limit; an expand-down segment begins above it."""
        last = offset + size - 1
        kind = self.flags << 32
        if kind & CODE or not kind & _EXPAND_DOWN:
            return last <= self.limit
        return offset > self.limit and last <= (0xFFFF_FFFF if kind & DEFAULT_BIG else 0xFFFF)


def decode(value: int) -> Segment:
    """Split a code or data descriptor into base, limit and flags as the processor caches them."""
    base = value >> 16 & 0xFF_FFFF | (value >> 56 & 0xFF) << 24
    limit = value & 0xFFFF | (value >> 48 & 0xF) << 16
    if value & 1 << 55:
        limit = limit << 12 | 0xFFF
    return Segment(base, limit, value >> 32 & 0x00FF_FF00)


def is_loadable_code(value: int, rpl: int) -> bool:
    """Whether a return to privilege level `rpl` may load this into CS (present, 64-bit or 32-bit code)."""
    if not value & PRESENT or not value & S or not value & CODE:
        return False
    if value & LONG and value & DEFAULT_BIG:
        return False
    dpl = value >> 45 & 3
    return dpl <= rpl if value & CONFORMING else dpl == rpl


def is_loadable_data(value: int, privilege: int) -> bool:
    """Whether DS, ES, FS or GS may have this at `privilege`, the lesser one of CPL and RPL."""
    if not value & PRESENT or not value & S:
        return False
    if value & CODE and not value & READABLE_CODE:
        return False
    if value & CODE and value & CONFORMING:
        return True
    return value >> 45 & 3 >= privilege


def is_loadable_stack(value: int, rpl: int) -> bool:
    """Whether ring `rpl` may load this into SS (present, writable data, DPL equal)."""
    if not value & PRESENT or not value & S or value & CODE or not value & WRITABLE_DATA:
        return False
    return value >> 45 & 3 == rpl
