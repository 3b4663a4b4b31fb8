# SPDX-License-Identifier: GPL-2.0-only
"""FIFO delivery of events: queues in guest memory, one a priority and vCPU, in the order of arrival.

The layout is that of the public header `event_channel.h` ("FIFO ABI"). A guest gives one page for each 1024
ports (the event array) and each vCPU a control block; for both widths of guests they are the same.

    control block of the vCPU              event array, one u32 a port
    ready     one bit a priority      ┌──► [port 9]   PENDING MASKED LINKED BUSY   LINK = 4 ──┐
    head[q]   first port of queue q ──┘    [port 4]   PENDING MASKED LINKED BUSY   LINK = 0 ◄─┘

    port          not masked, not LINKED: LINKED is set, and the port goes behind the tail of the queue of its
    becomes       vCPU and priority if the tail is still LINKED; otherwise the queue is empty, and it becomes
    pending       the head, the queue ready, and the vCPU gets an upcall.
    guest         takes the head, clears its LINKED and LINK, and the next port is the head.

Both sides write the words. This module therefore believes nothing that it reads: LINK is never followed, only
written; which port is a queue's tail, and on which queue a port was last, is kept here. A guest that lies
loses its own events. Every operation touches at most three words, except that a new page of the array
delivers what has waited for it. As `delivery.py` it is called only while no engine executes the domain, so
that a word that was read is still the same when it is written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from pyhv.abi.errno import Errno
from pyhv.abi.layout import u8, u16, u32
from pyhv.abi.shared import (
    FIFO_BUSY,
    FIFO_CONTROL_BLOCK_SIZE,
    FIFO_HEAD,
    FIFO_LINK_BITS,
    FIFO_LINKED,
    FIFO_MASKED,
    FIFO_PENDING,
    FIFO_PORTS,
    FIFO_QUEUES,
    FIFO_READY,
    FIFO_WORDS_PER_PAGE,
)
from pyhv.address import PAGE_SIZE, Mfn
from pyhv.errors import XenError
from pyhv.events.delivery import Effect
from pyhv.shared_page import SharedPage
from pyhv.state import Plain, construct, refusal, state

DEFAULT_PRIORITY: Final = 7
"""What a port begins with."""
MAX_PAGES: Final = FIFO_PORTS // FIFO_WORDS_PER_PAGE
"""Pages of a full event array."""

_NOTHING, _NEWLY_PENDING = Effect.NOTHING, Effect.NEWLY_PENDING
_UPCALL, _BOTH = Effect.UPCALL, Effect.BOTH
_UNLINK: Final = ~(FIFO_BUSY | (1 << FIFO_LINK_BITS) - 1)


def check_control_block(offset: int) -> None:
    """Raise EINVAL unless a control block can lie at `offset` of a page."""
    if not 0 <= offset <= PAGE_SIZE - FIFO_CONTROL_BLOCK_SIZE or offset % 8:
        raise XenError(Errno.EINVAL, f"a FIFO control block cannot lie at offset {offset}")


@dataclass(slots=True)
class _Saved:
    """The state of FIFO delivery."""

    array: list[Mfn]
    blocks: list[tuple[Mfn, u16] | None]
    tails: list[u32]
    queue_of: dict[u32, u32]
    priorities: dict[u32, u8]
    early: set[u32]


class Fifo:
    """The FIFO implementation of `PendingBits`.

    `mark_upcall(vcpu)` sets that vCPU's upcall flag and says whether it was clear. `early` are the ports that
    are pending while the array has no page for them yet. `find_page` has the page of a frame, for state that
    was saved.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "mark_upcall": "of the domain's",
        "_find_page": "of the domain's",
    }

    def __init__(
        self,
        vcpu_count: int,
        mark_upcall: Callable[[int], Effect],
        early: Iterable[int],
        find_page: Callable[[Mfn], SharedPage | None],
    ) -> None:
        self.mark_upcall = mark_upcall
        self._find_page = find_page
        self._array: list[SharedPage] = []
        self._blocks: list[tuple[SharedPage, int] | None] = [None] * vcpu_count
        self._tails = [0] * (vcpu_count * FIFO_QUEUES)
        """Of each queue (vCPU * 16 + priority) the port that was linked last, 0 before the first."""
        self._queue_of: dict[int, int] = {}
        """The queue that a port was linked on last; none is queue 0. It survives the port's closing."""
        self._priorities: dict[int, int] = {}
        """Of open ports, where it is not the default."""
        self._early = set(early)

    # ---- setting up

    def check_vcpu(self, vcpu: int) -> None:
        """Raise EINVAL if the vCPU has its control block already."""
        if self._blocks[vcpu] is not None:
            raise XenError(Errno.EINVAL, f"vCPU {vcpu} has a FIFO control block already")

    def add_control_block(self, vcpu: int, page: SharedPage, offset: int) -> None:
        """Use the block at `offset` of `page` for `vcpu`; both were checked."""
        self._blocks[vcpu] = (page, offset)

    def check_array(self) -> None:
        """Raise ENOSPC if the event array is as long as it can be."""
        if len(self._array) == MAX_PAGES:
            raise XenError(Errno.ENOSPC, f"the event array has its {MAX_PAGES} pages")

    def add_array_page(self, page: SharedPage) -> list[int]:
        """Add the next 1024 words; the ports among them that have waited for it, to be set pending now."""
        first = len(self._array) * FIFO_WORDS_PER_PAGE
        self._array.append(page)
        waiting = sorted(port for port in self._early if port < first + FIFO_WORDS_PER_PAGE)
        self._early.difference_update(waiting)
        return waiting

    def pages(self) -> Iterator[SharedPage]:
        """Every page in use, once for each use: each holds a reference to its frame."""
        yield from self._array
        yield from (block[0] for block in self._blocks if block is not None)

    # ---- state

    def state(self) -> dict[str, Plain]:
        """Pages by frame, the queues' tails, and what is known of ports."""
        blocks = [None if block is None else (block[0].mfn, block[1]) for block in self._blocks]
        return state(
            _Saved(
                [page.mfn for page in self._array],
                blocks,
                self._tails,
                self._queue_of,
                self._priorities,
                self._early,
            )
        )

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved; references to frames are restored apart. StateError."""
        found = construct(_Saved, dict(saved))
        if len(found.array) > MAX_PAGES or len(found.blocks) != len(self._blocks):
            raise refusal("array", "or blocks is too long, or too short")
        words = len(found.array) * FIFO_WORDS_PER_PAGE
        if len(found.tails) != len(self._tails) or any(port and port >= words for port in found.tails):
            raise refusal("tails", "has ports that are not in the array, or too few")
        if any(queue >= len(self._tails) for queue in found.queue_of.values()):
            raise refusal("queue_of", "has a queue that does not exist")
        if any(priority >= FIFO_QUEUES for priority in found.priorities.values()):
            raise refusal("priorities", "has one that does not exist")
        if any(port >= FIFO_PORTS for port in (*found.early, *found.priorities, *found.queue_of)):
            raise refusal("early", "priorities or queue_of has a port that cannot be")
        self._array = [self._page(mfn, "array") for mfn in found.array]
        self._blocks = [None if block is None else self._block(*block) for block in found.blocks]
        self._tails, self._queue_of = found.tails, found.queue_of
        self._priorities, self._early = found.priorities, found.early

    def _page(self, mfn: Mfn, where: str) -> SharedPage:
        page = self._find_page(mfn)
        if page is None:
            raise refusal(where, f"has frame {mfn}, which does not exist")
        return page

    def _block(self, mfn: Mfn, offset: int) -> tuple[SharedPage, int]:
        try:
            check_control_block(offset)
        except XenError:
            raise refusal("blocks", f"has one at offset {offset}") from None
        return self._page(mfn, "blocks"), offset

    # ---- ports

    def set_priority(self, port: int, priority: int) -> None:
        """Choose the queue for the port's next events, 0 (first) to 15; EINVAL for another number."""
        if not 0 <= priority < FIFO_QUEUES:
            raise XenError(Errno.EINVAL, f"priority {priority} is above {FIFO_QUEUES - 1}")
        self._priorities[port] = priority

    def is_busy(self, port: int) -> bool:
        """Whether a closed port is still on a queue, so that it cannot be opened again yet."""
        return bool(self._word(port) & FIFO_LINKED)

    def _word(self, port: int) -> int:
        """The port's event word; 0 if there is no page for it."""
        if port >> 10 >= len(self._array):
            return 0
        return self._array[port >> 10].read_u32((port & 1023) << 2)

    # ---- PendingBits

    def set_pending(self, port: int, vcpu: int) -> Effect:
        """Set PENDING; link the port to its queue unless it is masked or linked.

        For a vCPU without a control block it stays at PENDING, and the guest must look for itself.
        """
        if port >> 10 >= len(self._array):
            self._early.add(port)
            return _NOTHING
        page, at = self._array[port >> 10], (port & 1023) << 2
        word = page.read_u32(at)
        block = self._blocks[vcpu]
        if block is None or word & (FIFO_MASKED | FIFO_LINKED):
            if word & FIFO_PENDING:
                return _NOTHING
            page.write_u32(at, word | FIFO_PENDING)
            return _NEWLY_PENDING
        page.write_u32(at, word | FIFO_PENDING | FIFO_LINKED)
        quiet, loud = (_NOTHING, _UPCALL) if word & FIFO_PENDING else (_NEWLY_PENDING, _BOTH)
        priority = self._priorities.get(port, DEFAULT_PRIORITY)
        if self._append(port, vcpu * FIFO_QUEUES + priority):
            return quiet
        control, start = block
        control.write_u32(start + FIFO_HEAD + 4 * priority, port)
        ready = control.read_u32(start + FIFO_READY)
        if ready >> priority & 1:
            return quiet
        control.write_u32(start + FIFO_READY, ready | 1 << priority)
        return quiet if self.mark_upcall(vcpu) is _NOTHING else loud

    def _append(self, port: int, queue: int) -> bool:
        """Make the port its queue's tail; False if the queue was empty, and the port must become its head.

        A port that was the tail of the queue it was on last has left it, so that queue is empty: its tail
        must not be taken for linked because the port is now, here.
        """
        tails = self._tails
        last = self._queue_of.get(port, 0)
        if tails[last] == port:
            tails[last] = 0
        if last != queue:
            self._queue_of[port] = queue
        tail = tails[queue]
        tails[queue] = port
        if not tail:
            return False
        page, at = self._array[tail >> 10], (tail & 1023) << 2
        word = page.read_u32(at)
        if not word & FIFO_LINKED:
            return False
        page.write_u32(at, word & _UNLINK | port)
        return True

    def clear_pending(self, port: int) -> None:
        """The port closes: forget its event and priority. It stays linked until the guest takes it off."""
        self._early.discard(port)
        self._priorities.pop(port, None)
        word = self._word(port)
        if word & FIFO_PENDING:
            self._array[port >> 10].write_u32((port & 1023) << 2, word & ~FIFO_PENDING)

    def unmask(self, port: int, vcpu: int) -> Effect:
        """Clear MASKED; link the port if it is pending."""
        word = self._word(port)
        if word & FIFO_MASKED:
            self._array[port >> 10].write_u32((port & 1023) << 2, word & ~FIFO_MASKED)
        return self.set_pending(port, vcpu) if word & FIFO_PENDING else _NOTHING

    def is_pending(self, port: int) -> bool:
        """Whether the port's word has PENDING."""
        return bool(self._word(port) & FIFO_PENDING)

    def is_masked(self, port: int) -> bool:
        """Whether the port's word has MASKED; one without a word is masked."""
        return port >> 10 >= len(self._array) or bool(self._word(port) & FIFO_MASKED)
