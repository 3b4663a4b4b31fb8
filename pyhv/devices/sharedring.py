# SPDX-License-Identifier: GPL-2.0-only
"""The back end's end of a ring of requests and responses (public header `io/ring.h`).

    0    req_prod     u32   the guest's: so many requests it has ever put in
    4    req_event    u32   ours: notify us when req_prod passes that
    8    rsp_prod     u32   ours: so many responses we have ever put in
    12   rsp_event    u32   the guest's: notify it when rsp_prod passes that
    64   entries, a power of two of them; a response takes an entry whose request has been taken

            rsp_prod       req_cons       req_prod
               |              |              |          all free-running; an entry's place is its
     ----------|==============|##############|----      index & (size - 1)
               in the works    not yet taken

The guest can write anything anywhere in it at any time. Where we are (`req_cons`, `rsp_prod`) is kept here
and never read from the page; `req_prod` is read once for each look and is believed only if the ring can hold
what it claims: no more requests than entries without a response. Each request is copied once, and only the
copy is looked at.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from pyhv.abi.layout import u32
from pyhv.address import MASK32
from pyhv.devices.borrowing import Borrowed
from pyhv.devices.ring import RingBroken
from pyhv.state import Plain, entries, refusal, typed

_REQ_PROD, _REQ_EVENT, _RSP_PROD, _RSP_EVENT, _ENTRIES = 0, 4, 8, 12, 64
_UNREAD: Final = dict.fromkeys(("req_cons", "rsp_prod", "published"))


def entries_in(size: int, entry: int) -> int:
    """How many entries of `entry` bytes a ring of `size` bytes has."""
    return 1 << ((size - _ENTRIES) // entry).bit_length() - 1


class BackRing:
    """One ring, in memory that the guest lends."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "memory": "the guest's, borrowed",
        **dict.fromkeys(("size", "_entry"), "of the protocol"),
    }

    def __init__(self, memory: Borrowed, entry: int) -> None:
        """`entry` is the size of an entry in bytes. The ring goes on from where the page says it is."""
        self.memory = memory
        self.size = entries_in(memory.size, entry)
        self._entry = entry
        # A front end that reconnects begins at 0; one that goes on after a migration has answers waiting.
        self.rsp_prod = self.req_cons = self.published = memory.read_u32(_RSP_PROD)

    @property
    def in_the_works(self) -> int:
        """Requests that were taken and have no response yet."""
        return (self.req_cons - self.rsp_prod) & MASK32

    def unread(self) -> int:
        """Requests that wait. RingBroken."""
        claimed = self.memory.read_u32(_REQ_PROD)
        if (claimed - self.rsp_prod) & MASK32 > self.size:
            raise RingBroken(
                f"{claimed:#x} requests ever, {self.rsp_prod:#x} responses: the ring has {self.size}"
            )
        unread = (claimed - self.req_cons) & MASK32
        if unread > self.size:
            raise RingBroken(f"{claimed:#x} requests ever, of which {self.req_cons:#x} were taken already")
        return unread

    def take(self, length: int) -> bytes:
        """The next request, of which `length` bytes are of interest; there must be one."""
        data = self.memory.read(self._place(self.req_cons), length)
        self.req_cons = (self.req_cons + 1) & MASK32
        return data

    def listen(self, beyond: int = 0) -> bool:
        """Be notified when more than `beyond` requests wait. True: they do already. RingBroken."""
        self.memory.write_u32(_REQ_EVENT, (self.req_cons + beyond + 1) & MASK32)
        return self.unread() > beyond

    def put(self, response: bytes) -> None:
        """Answer a request that was taken, whichever; the guest sees it after `publish`."""
        if not self.in_the_works:
            raise ValueError("a response to no request")
        self.memory.write(self._place(self.rsp_prod), response)
        self.rsp_prod = (self.rsp_prod + 1) & MASK32

    def publish(self) -> bool:
        """Let the guest see the responses. True: it wants to be notified."""
        new, old = self.rsp_prod, self.published
        if new == old:
            return False
        self.memory.write_u32(_RSP_PROD, new)
        self.published = new
        wanted = self.memory.read_u32(_RSP_EVENT)
        return (new - wanted) & MASK32 < (new - old) & MASK32

    def _place(self, index: int) -> int:
        return _ENTRIES + (index & self.size - 1) * self._entry

    def state(self) -> dict[str, Plain]:
        """Where we are; the rest is in the page."""
        return {"req_cons": self.req_cons, "rsp_prod": self.rsp_prod, "published": self.published}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be there. StateError."""
        found = entries(dict(saved), "", _UNREAD)
        req_cons, rsp_prod, published = (typed(u32, found[name], name) for name in _UNREAD)
        if (req_cons - rsp_prod) & MASK32 > self.size or (rsp_prod - published) & MASK32 > self.size:
            raise refusal("ring", "has more in the works than it has entries")
        self.req_cons, self.rsp_prod, self.published = req_cons, rsp_prod, published
