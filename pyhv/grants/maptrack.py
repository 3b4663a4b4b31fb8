# SPDX-License-Identifier: GPL-2.0-only
"""The mapping side of grants: a domain's handles, one for each grant it has mapped.

A handle is what GNTTABOP_map_grant_ref returns and GNTTABOP_unmap_grant_ref takes (public header
`grant_table.h`). The hypervisor remembers here what was mapped where, so that an unmap is believed only about
the handle, and a dead domain's mappings can all be undone. It knows no page tables and no other domain's
grant table.
"""

import heapq
from collections import Counter, abc
from dataclasses import dataclass
from typing import ClassVar, Final

from pyhv.abi.grants import GrantStatus, MapFlag
from pyhv.abi.layout import u16, u32
from pyhv.address import PAGE_SHIFT, Mfn
from pyhv.grants.status import GrantError
from pyhv.grants.table import HALVES
from pyhv.state import Plain, construct, refusal, state

HANDLES_PER_FRAME: Final = 256
"""Handles that a frame of Xen's own bookkeeping holds; the limit is configured in such frames."""
MAX_FRAMES: Final = 1024


@dataclass(slots=True)
class Mapping:
    """One mapped grant. `flags` loses the HOST or DEVICE bit when that half is unmapped.

    `granter` and `ref` name the entry, `frame` is what was mapped. Where it was mapped is not kept: an unmap
    names the place, and the page table there must still say so.
    """

    granter: u16
    ref: u32
    flags: MapFlag
    frame: Mfn

    @property
    def readonly(self) -> bool:
        """Whether the grant is used for reading only."""
        return bool(self.flags & MapFlag.READONLY)

    @property
    def device(self) -> bool:
        """Whether the device half is still mapped."""
        return bool(self.flags & MapFlag.DEVICE)

    @property
    def halves(self) -> MapFlag:
        """The halves that are still mapped."""
        return self.flags & HALVES


@dataclass(slots=True)
class _Saved:
    """The state of the handles."""

    mappings: dict[u32, Mapping]
    unused: u32


class Maptrack:
    """The handles of one domain, lowest free first."""

    NOT_STATE: ClassVar[abc.Mapping[str, str]] = {
        "limit": "the domain's builder",
        "_freed": "follows: the handles below `_unused` that are not in use",
        "_frames": "follows from the mappings",
    }

    def __init__(self, max_frames: int = MAX_FRAMES) -> None:
        self.limit = max_frames * HANDLES_PER_FRAME
        """Most handles at a time."""
        self._mappings: dict[int, Mapping] = {}
        self._freed: list[int] = []
        """Heap of handles below `_unused` that are free again."""
        self._unused = 0
        self._frames: Counter[Mfn] = Counter()
        """How many handles each frame has."""

    def __len__(self) -> int:
        return len(self._mappings)

    def check_space(self) -> None:
        """Raise NO_SPACE if no handle is free. A map operation asks before it looks at the grant."""
        if len(self._mappings) >= self.limit:
            raise GrantError(GrantStatus.NO_SPACE, f"all {self.limit} grant handles are in use")

    def add(self, mapping: Mapping) -> int:
        """Record a mapping that has been made, and return its handle. NO_SPACE."""
        self.check_space()
        if self._freed:
            handle = heapq.heappop(self._freed)
        else:
            handle = self._unused
            self._unused += 1
        self._mappings[handle] = mapping
        self._frames[mapping.frame] += 1
        return handle

    def get(self, handle: int) -> Mapping:
        """The mapping behind a handle. BAD_HANDLE."""
        mapping = self._mappings.get(handle)
        if mapping is None:
            raise GrantError(GrantStatus.BAD_HANDLE, f"grant handle {handle:#x} is not in use")
        return mapping

    def borrows(self, frame: int) -> bool:
        """Whether some handle stands for this frame."""
        return frame in self._frames

    def select(self, handle: int, host_addr: int, dev_bus_addr: int) -> tuple[Mapping, MapFlag]:
        """What an unmap operation means: the mapping, and which of its halves to undo.

        An address of 0 leaves its half mapped, and so does naming a half that is not mapped. BAD_HANDLE;
        BAD_DEV_ADDR: a device address that is not the frame's. Whether `host_addr` maps the frame is for the
        page tables to say.
        """
        mapping = self.get(handle)
        halves = MapFlag(0)
        if dev_bus_addr and mapping.flags & MapFlag.DEVICE:
            if dev_bus_addr != mapping.frame << PAGE_SHIFT:
                raise GrantError(
                    GrantStatus.BAD_DEV_ADDR,
                    f"device address {dev_bus_addr:#x} is not that of frame {mapping.frame:#x}",
                )
            halves |= MapFlag.DEVICE
        if host_addr and mapping.flags & MapFlag.HOST:
            halves |= MapFlag.HOST
        return mapping, halves

    def end(self, handle: int, halves: MapFlag) -> bool:
        """Record that `halves` were unmapped; True if that was the last of them and the handle is free.

        BAD_HANDLE. The caller drops the same halves in the granter's table.
        """
        mapping = self.get(handle)
        # Plain integers: the complement of a flag loses the bits that have no name, which the guest may use.
        mapping.flags = MapFlag(int(mapping.flags) & ~int(halves & HALVES))
        if mapping.halves:
            return False
        del self._mappings[handle]
        self._frames[mapping.frame] -= 1
        if not self._frames[mapping.frame]:
            del self._frames[mapping.frame]
        heapq.heappush(self._freed, handle)
        return True

    def all(self) -> abc.Iterator[tuple[int, Mapping]]:
        """Every (handle, mapping), by ascending handle; ending them meanwhile is allowed."""
        yield from sorted(self._mappings.items())

    def state(self) -> dict[str, Plain]:
        """The mappings by handle, and the first handle that never was in use."""
        return state(_Saved(self._mappings, self._unused))

    def restore(self, saved: abc.Mapping[str, Plain]) -> None:
        """Be what was saved; StateError."""
        found = construct(_Saved, dict(saved))
        if found.unused > self.limit or any(handle >= found.unused for handle in found.mappings):
            raise refusal("unused", "does not go with the handles in use and with their limit")
        for handle, mapping in found.mappings.items():
            if not mapping.halves:
                raise refusal(f"mappings.{handle}", "has no half that is mapped")
        self._mappings, self._unused = found.mappings, found.unused
        self._freed = [handle for handle in range(found.unused) if handle not in found.mappings]
        self._frames = Counter(mapping.frame for mapping in found.mappings.values())
