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
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from pyhv.abi.layout import u32
from pyhv.abi.shared import SHARED_LAYOUT, SI_EVTCHN_PENDING
from pyhv.events.vcpu_info import VcpuInfo
from pyhv.shared_page import SharedPage
from pyhv.state import Plain, entries, typed


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
        """Whether the port's pending bit is set, masked or not."""

    def is_masked(self, port: int) -> bool:
        """Whether the port's mask bit is set."""

    def mark_upcall(self, vcpu: int) -> Effect:
        """Set the vCPU's upcall flag: UPCALL if it was clear."""


def _test(page: SharedPage, base: int, bit: int) -> bool:
    return bool(page.read_u8(base + bit // 8) & 1 << bit % 8)


def _test_and_set(page: SharedPage, base: int, bit: int) -> bool:
    """Set a bit and return what it was."""
    byte = page.read_u8(base + bit // 8)
    page.write_u8(base + bit // 8, byte | 1 << bit % 8)
    return bool(byte & 1 << bit % 8)


def _test_and_clear(page: SharedPage, base: int, bit: int) -> bool:
    """Clear a bit and return what it was."""
    byte = page.read_u8(base + bit // 8)
    page.write_u8(base + bit // 8, byte & ~(1 << bit % 8))
    return bool(byte & 1 << bit % 8)


class TwoLevel:
    """The 2-level implementation of `PendingBits`, over a domain's shared_info page.

    `infos` are the vCPUs' records, by number; `width` is the guest's word size in bits, 64 or 32.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("page", "width", "_infos"), "the domain's builder"),
        "_mask": "follows from the width",
    }

    def __init__(self, page: SharedPage, infos: Sequence[VcpuInfo], width: int = 64) -> None:
        self.page = page
        self.width = width
        self._mask = SHARED_LAYOUT[width].evtchn_mask
        self._infos = infos

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
        """Whether the port's pending bit is set."""
        return _test(self.page, SI_EVTCHN_PENDING, port)

    def is_masked(self, port: int) -> bool:
        """Whether the port's mask bit is set."""
        return _test(self.page, self._mask, port)

    def _select(self, port: int, vcpu: int) -> Effect:
        """Set the selector bit; if it was clear, the vCPU gets an upcall."""
        if self._infos[vcpu].select(port // self.width):
            return self.mark_upcall(vcpu)
        return _NOTHING

    def mark_upcall(self, vcpu: int) -> Effect:
        """Set the vCPU's upcall flag: UPCALL if it was clear."""
        return _UPCALL if self._infos[vcpu].mark_pending() else _NOTHING


class Unshared:
    """`PendingBits` of a domain without memory: the back ends' own, where every event goes to a callback.

    An event on a port that has no callback is remembered, and nobody is woken.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        self._pending: set[int] = set()

    def state(self) -> dict[str, Plain]:
        """What was remembered."""
        return {"pending": list[Plain](sorted(self._pending))}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Remember what was saved. StateError."""
        self._pending = set(typed(list[u32], entries(dict(saved), "", self.state())["pending"], "pending"))

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
        """Whether an event was remembered."""
        return port in self._pending

    def is_masked(self, port: int) -> bool:
        """False."""
        return False

    def mark_upcall(self, vcpu: int) -> Effect:
        """Nobody takes upcalls here."""
        return Effect.NOTHING
