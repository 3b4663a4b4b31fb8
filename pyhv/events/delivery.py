# SPDX-License-Identifier: GPL-2.0-only
"""Two-level delivery of events: the bits in guest memory that say "something happened, look here".

The other way to deliver, which a guest may switch to, is in `fifo.py`; both end in the same flag.

The layout is `struct shared_info` and `struct vcpu_info` of the public header `xen.h`:

    shared_info                              vcpu_info of the port's target vCPU
    evtchn_pending[]  one bit a port ──┐     upcall_pending  "call the event callback"
    evtchn_mask[]     one bit a port ──┴───► pending_sel     one bit a word of evtchn_pending
                                             upcall_mask     the guest's interrupt flag, inverted

A guest looks from the right to the left: a flag, then a word, then a bit. All fields are little-endian
bitmaps, so a bit's byte does not depend on the guest's word width; only the offsets of two fields and the
number of ports that share a `pending_sel` bit do. This module knows no ports' meaning, no vCPU state and no
page tables: memory is what its owner passes in. The guest changes these bits with atomic instructions while
it runs, so the caller touches them only while no engine executes that domain.
"""

import enum
from dataclasses import dataclass
from typing import Protocol

from pyhv.abi.errno import Errno
from pyhv.abi.shared import (
    MAX_LEGACY_VCPUS,
    SHARED_LAYOUT,
    SI_EVTCHN_PENDING,
    SI_VCPU_INFO,
    VCPU_INFO_SIZE,
    VI_UPCALL_MASK,
    VI_UPCALL_PENDING,
)
from pyhv.address import PAGE_SIZE
from pyhv.errors import XenError


class Effect(enum.Flag):
    """What setting an event pending, or unmasking it, has caused."""

    NOTHING = 0
    NEWLY_PENDING = 1
    """The port's pending bit went from 0 to 1: vCPUs that poll this port wake up."""
    UPCALL = 2
    """The target vCPU now has an upcall to take, which it had not before: it wakes up."""
    BOTH = 3


# Members of a Flag cost a call each time they are looked up or combined, and events are frequent.
_NOTHING, _NEWLY_PENDING, _UPCALL, _BOTH = Effect.NOTHING, Effect.NEWLY_PENDING, Effect.UPCALL, Effect.BOTH


class PendingBits(Protocol):
    """Where a domain's pending events are kept. `port` and `vcpu` were validated by the caller."""

    def set_pending(self, port: int, vcpu: int) -> Effect:
        """An event has arrived on `port`, whose target is `vcpu`."""

    def clear_pending(self, port: int) -> None:
        """Forget an event: its port is being closed."""

    def unmask(self, port: int, vcpu: int) -> Effect:
        """Clear the port's mask bit, and deliver what it held back."""

    def is_pending(self, port: int) -> bool:
        """Say whether the port's pending bit is set, masked or not."""

    def is_masked(self, port: int) -> bool:
        """Say whether the port's mask bit is set."""

    def mark_upcall(self, vcpu: int) -> Effect:
        """Set the vCPU's upcall flag: UPCALL if it was clear."""


class SharedBytes(Protocol):
    """A window on one guest page; offsets are bytes from its start."""

    def read_u8(self, offset: int) -> int:
        """Read one byte."""

    def write_u8(self, offset: int, value: int) -> None:
        """Write one byte."""


@dataclass(frozen=True, slots=True)
class VcpuInfoLocation:
    """Where a vCPU's live `vcpu_info` is: a page, and the offset of the record's first byte in it."""

    page: SharedBytes
    offset: int


def _test(page: SharedBytes, base: int, bit: int) -> bool:
    return bool(page.read_u8(base + bit // 8) & 1 << bit % 8)


def _test_and_set(page: SharedBytes, base: int, bit: int) -> bool:
    """Set a bit and return what it was."""
    byte = page.read_u8(base + bit // 8)
    page.write_u8(base + bit // 8, byte | 1 << bit % 8)
    return bool(byte & 1 << bit % 8)


def _test_and_clear(page: SharedBytes, base: int, bit: int) -> bool:
    """Clear a bit and return what it was."""
    byte = page.read_u8(base + bit // 8)
    page.write_u8(base + bit // 8, byte & ~(1 << bit % 8))
    return bool(byte & 1 << bit % 8)


class TwoLevel:
    """The 2-level implementation of `PendingBits`, over a domain's shared_info page.

    `width` is the guest's word size in bits, 64 or 32. A vCPU's `vcpu_info` lives in its slot of shared_info
    until `relocate` moves it; a vCPU beyond the slots has none before that, and events for it wait.
    """

    def __init__(self, page: SharedBytes, vcpu_count: int, width: int = 64) -> None:
        self.page = page
        self.width = width
        self._mask = SHARED_LAYOUT[width].evtchn_mask
        self._sel = SHARED_LAYOUT[width].pending_sel
        self._moved: set[int] = set()
        self._locations: list[VcpuInfoLocation | None] = [
            VcpuInfoLocation(page, SI_VCPU_INFO + VCPU_INFO_SIZE * vcpu) if vcpu < MAX_LEGACY_VCPUS else None
            for vcpu in range(vcpu_count)
        ]

    # ---- PendingBits

    def set_pending(self, port: int, vcpu: int) -> Effect:
        """Set the port's bit; if it was clear and the port is not masked, select its word for `vcpu`."""
        if _test_and_set(self.page, SI_EVTCHN_PENDING, port):
            return _NOTHING
        if self.is_masked(port) or self._select(port, vcpu) is _NOTHING:
            return _NEWLY_PENDING
        return _BOTH

    def clear_pending(self, port: int) -> None:
        """Clear the port's bit; a selector bit may stay, guests cope with an empty word."""
        _test_and_clear(self.page, SI_EVTCHN_PENDING, port)

    def unmask(self, port: int, vcpu: int) -> Effect:
        """Clear the mask bit; if it was set and the port is pending, select its word for `vcpu`."""
        if _test_and_clear(self.page, self._mask, port) and self.is_pending(port):
            return self._select(port, vcpu)
        return _NOTHING

    def is_pending(self, port: int) -> bool:
        """Say whether the port's pending bit is set."""
        return _test(self.page, SI_EVTCHN_PENDING, port)

    def is_masked(self, port: int) -> bool:
        """Say whether the port's mask bit is set."""
        return _test(self.page, self._mask, port)

    def _select(self, port: int, vcpu: int) -> Effect:
        """Set the selector bit; if it was clear, the vCPU gets an upcall."""
        where = self._locations[vcpu]
        if where is None or _test_and_set(where.page, where.offset + self._sel, port // self.width):
            return _NOTHING
        return self.mark_upcall(vcpu)

    def mark_upcall(self, vcpu: int) -> Effect:
        """Set the vCPU's upcall flag: UPCALL if it was clear. A vCPU without a `vcpu_info` has none."""
        where = self._locations[vcpu]
        if where is None or where.page.read_u8(where.offset + VI_UPCALL_PENDING):
            return _NOTHING
        where.page.write_u8(where.offset + VI_UPCALL_PENDING, 1)
        return _UPCALL

    # ---- vcpu_info

    def location(self, vcpu: int) -> VcpuInfoLocation | None:
        """Where a vCPU's live `vcpu_info` is; None for a vCPU beyond the slots that registered none."""
        return self._locations[vcpu]

    def upcall_pending(self, vcpu: int) -> bool:
        """Say whether the vCPU has an upcall to take, masked or not."""
        where = self._locations[vcpu]
        return where is not None and where.page.read_u8(where.offset + VI_UPCALL_PENDING) != 0

    def upcall_masked(self, vcpu: int) -> bool:
        """Say whether the vCPU refuses upcalls now. One without a `vcpu_info` does."""
        where = self._locations[vcpu]
        return where is None or where.page.read_u8(where.offset + VI_UPCALL_MASK) != 0

    def set_upcall_mask(self, vcpu: int, masked: bool) -> None:
        """Store the vCPU's upcall mask (no effect without a `vcpu_info`)."""
        where = self._locations[vcpu]
        if where is not None:
            where.page.write_u8(where.offset + VI_UPCALL_MASK, int(masked))

    def deliverable(self, vcpu: int) -> bool:
        """Say whether the event callback must be entered when this vCPU next runs."""
        return self.upcall_pending(vcpu) and not self.upcall_masked(vcpu)

    def check_relocation(self, vcpu: int, offset: int) -> None:
        """VCPUOP_register_vcpu_info's own checks: ENXIO for a bad offset, EBUSY the second time.

        The caller runs it before it takes a reference to the page, and answers for the page itself.
        """
        if not 0 <= offset <= PAGE_SIZE - VCPU_INFO_SIZE:
            raise XenError(Errno.ENXIO, f"vcpu_info at offset {offset} crosses the end of its page")
        if offset % (self.width // 8):
            raise XenError(Errno.ENXIO, f"vcpu_info at offset {offset} is not aligned")
        if vcpu in self._moved:
            raise XenError(Errno.EBUSY, f"vCPU {vcpu} has registered its vcpu_info already")

    def relocate(self, vcpu: int, page: SharedBytes, offset: int) -> None:
        """Move a vCPU's `vcpu_info`, contents included, and mark every word as having something pending.

        The spurious upcall makes sure that no event is lost between the old place and the new. Wake the
        vCPU afterwards. Raises as `check_relocation` does.
        """
        self.check_relocation(vcpu, offset)
        old = self._locations[vcpu]
        for i in range(VCPU_INFO_SIZE):
            page.write_u8(offset + i, old.page.read_u8(old.offset + i) if old is not None else 0)
        if old is None:
            page.write_u8(offset + VI_UPCALL_MASK, 1)
        for i in range(self.width // 8):
            page.write_u8(offset + self._sel + i, 0xFF)
        page.write_u8(offset + VI_UPCALL_PENDING, 1)
        self._moved.add(vcpu)
        self._locations[vcpu] = VcpuInfoLocation(page, offset)


class Unshared:
    """`PendingBits` of a domain without memory: the back ends' own, where every event goes to a callback.

    An event on a port that has no callback is remembered, and nobody is woken.
    """

    def __init__(self) -> None:
        self._pending: set[int] = set()

    def set_pending(self, port: int, vcpu: int) -> Effect:
        """Remember the event."""
        if port in self._pending:
            return Effect.NOTHING
        self._pending.add(port)
        return Effect.NEWLY_PENDING

    def clear_pending(self, port: int) -> None:
        """Forget the event."""
        self._pending.discard(port)

    def unmask(self, port: int, vcpu: int) -> Effect:
        """Nothing is ever masked here."""
        return Effect.NOTHING

    def is_pending(self, port: int) -> bool:
        """Say whether an event was remembered."""
        return port in self._pending

    def is_masked(self, port: int) -> bool:
        """False."""
        return False

    def mark_upcall(self, vcpu: int) -> Effect:
        """Nobody takes upcalls here."""
        return Effect.NOTHING
