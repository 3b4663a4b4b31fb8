# SPDX-License-Identifier: GPL-2.0-only
"""What domain 0 has borrowed: the frames of guests that its back ends use, by way of the grant tables.

A back end reaches a guest's frame in no other way than a driver domain would. It maps a grant for as long as
it needs the frame (a ring), or copies through one at once (the data of a request). Each use is entered in the
guest's grant table and, if it lasts, in domain 0's own maptrack, and holds a reference to the frame: a page
that is lent cannot become a page table, nor another domain's.

Domain 0 has no page tables: its mappings are device halves, which are references alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from pyhv.abi.grants import GrantStatus, MapFlag
from pyhv.address import PAGE_SIZE
from pyhv.grants.holding import check_granted, drop, not_writable, take
from pyhv.grants.maptrack import Mapping as GrantMapping
from pyhv.grants.maptrack import Maptrack
from pyhv.grants.status import GrantError
from pyhv.grants.table import GrantTable
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.physical import FramePage, PhysicalMemory
from pyhv.shared_page import SharedPage
from pyhv.state import Plain, entries, restore

_DOM0: Final = 0


class Borrower:
    """Domain 0's side of the grant tables; `grants` finds a guest's by its domid."""

    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(("frames", "physical", "_grants"), "the machine's")

    def __init__(self, physical: PhysicalMemory, grants: Callable[[int], GrantTable | None]) -> None:
        self.physical = physical
        self.frames: FrameTable = physical.frames
        self._grants = grants
        self.maptrack = Maptrack()
        """What is mapped."""

    # -- for as long as it takes -------------------------------------------------------------------------

    def map(self, domid: int, ref: int, *, readonly: bool) -> int:
        """Map grant `ref` of a guest; returns the handle. GrantError: it is not granted in that way."""
        self.maptrack.check_space()
        table = self._table(domid, ref)
        mfn = table.take(ref, _DOM0, readonly, MapFlag.DEVICE)
        try:
            check_granted(self.frames, mfn, domid)
            take(self.frames, mfn, readonly)
        except GrantError:
            table.drop(ref, readonly, MapFlag.DEVICE)
            raise
        flags = MapFlag.DEVICE | (MapFlag.READONLY if readonly else MapFlag(0))
        return self.maptrack.add(GrantMapping(domid, ref, flags, mfn))

    def page(self, handle: int) -> FramePage:
        """The frame behind a handle."""
        return FramePage(self.physical, self.maptrack.get(handle).frame)

    def unmap(self, handle: int) -> None:
        """Give a frame back."""
        mapping = self.maptrack.get(handle)
        drop(self.frames, mapping.frame, mapping.readonly)
        table = self._grants(mapping.granter)
        if table is not None:
            table.drop(mapping.ref, mapping.readonly, MapFlag.DEVICE)
        self.maptrack.end(handle, MapFlag.DEVICE)

    # -- at once -----------------------------------------------------------------------------------------

    def read(self, domid: int, ref: int, offset: int, length: int) -> bytes:
        """Copy bytes out of a page that a guest lends. GrantError; the caller has them within the page."""
        mfn = self._table(domid, ref).lent(ref, _DOM0, readonly=True)
        check_granted(self.frames, mfn, domid)
        return self.physical.read((mfn << 12) + offset, length)

    def write(self, domid: int, ref: int, offset: int, data: bytes | memoryview) -> None:
        """Copy bytes into a page that a guest lends. GrantError; the caller has them within the page."""
        mfn = self._table(domid, ref).lent(ref, _DOM0, readonly=False)
        check_granted(self.frames, mfn, domid)
        if not self.frames.may_be_writable(mfn):
            raise not_writable(self.frames, mfn)
        self.physical.write((mfn << 12) + offset, bytes(data))

    # ----------------------------------------------------------------------------------------------------

    def _table(self, domid: int, ref: int) -> GrantTable:
        table = self._grants(domid)
        if table is None:
            raise GrantError(GrantStatus.BAD_DOMAIN, f"domain {domid} has no grants (any more): {ref}")
        return table

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Plain]:
        """What is mapped."""
        return {"maptrack": self.maptrack.state()}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Have that mapped; references and grants are restored by their owners. StateError."""
        restore(self.maptrack, entries(dict(saved), "", {"maptrack": None})["maptrack"], "maptrack")


class Borrowed:
    """Frames that a guest lends as one piece of memory, such as a ring of several pages: an offset leads to
    one of them. Words must not cross pages."""

    def __init__(self, pages: Sequence[SharedPage]) -> None:
        self._pages = pages
        self.size = len(pages) * PAGE_SIZE

    def read_u32(self, offset: int) -> int:
        """An aligned word."""
        return self._pages[offset >> 12].read_u32(offset & PAGE_SIZE - 1)

    def write_u32(self, offset: int, value: int) -> None:
        """Store an aligned word."""
        self._pages[offset >> 12].write_u32(offset & PAGE_SIZE - 1, value)

    def read(self, offset: int, length: int) -> bytes:
        """A copy of some bytes."""
        start = offset & PAGE_SIZE - 1
        page = self._pages[offset >> 12]
        first = PAGE_SIZE - start
        if length <= first:
            return page.read(start, length)
        return page.read(start, first) + self.read(offset + first, length - first)

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        start = offset & PAGE_SIZE - 1
        page = self._pages[offset >> 12]
        first = PAGE_SIZE - start
        if len(data) <= first:
            page.write(start, data)
        else:
            page.write(start, data[:first])
            self.write(offset + first, data[first:])
