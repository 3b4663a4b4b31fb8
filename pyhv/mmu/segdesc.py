# SPDX-License-Identifier: GPL-2.0-only
"""Descriptor pages: frames of type SEGDESC, which a GDT or an LDT is made of.

The first reference approves all descriptors of the frame (`descriptors.py`); while references are held, no
guest can map it writable. The frame table's rules are those of page tables; who takes references is the
trap layer, when a GDT is set or an LDT page is first used.
"""

from pyhv.address import Mfn
from pyhv.mmu import descriptors
from pyhv.mmu.frames import SEGDESC
from pyhv.mmu.tables import PageTables


def take_descriptor_page(tables: PageTables, mfn: int, width: int) -> bool:
    """Take a SEGDESC reference on an own frame of a guest of `width` bits; False if it cannot be one."""
    frames = tables.frames
    if not 0 < mfn < frames.count or frames.owner[mfn] != tables.domid or frames.xen_heap[mfn]:
        return False
    if frames.type_count[mfn] == 0:
        fixed = descriptors.approve_page(tables.ram.tables[mfn], width)
        if fixed is None:
            return False
        for slot, value in fixed:
            tables.physical.write_u64(mfn << 12 | slot << 3, value)
        if tables.stale:
            tables.flush = True
        frames.type[mfn] = SEGDESC
    elif frames.type[mfn] != SEGDESC:
        return False
    frames.type_count[mfn] += 1
    frames.refs[mfn] += 1
    return True


def drop_descriptor_page(tables: PageTables, mfn: Mfn) -> None:
    """Drop what `take_descriptor_page` took."""
    tables.frames.type_count[mfn] -= 1
    tables.frames.drop(mfn)
