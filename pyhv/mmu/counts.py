# SPDX-License-Identifier: GPL-2.0-only
"""What every page-table entry touches of the frames that it names: owner, type, counts, and how they change.

`frames.py` makes the columns, hands frames out and takes them back, and explains what the counts mean; this
is its part that may be compiled. Interpreted, a column is a memoryview of the numpy array; compiled
(`counts.pxd`), the same name is a pointer to the same bytes. A pointer has no end: a number that came from a
guest is compared with `count` before it is an index here.
"""

from typing import Final

from pyhv.cpu.words import octets, words16, words32

WRITABLE: Final = 7
"""The type of a frame that is mapped writable (`frames.py` has the others)."""


class FrameCounts:
    """Columns by frame number, and the taking and dropping of references."""

    def look_at(
        self,
        count: int,
        owner: memoryview,
        kind: memoryview,
        type_count: memoryview,
        refs: memoryview,
        exec_count: memoryview,
        code: memoryview,
        lent: memoryview,
        pinned: memoryview,
        linear_in: memoryview,
        linear_out: memoryview,
        last_l2: memoryview,
    ) -> None:
        """Have the columns of `count` frames, which stay where they are as long as this object."""
        self.count = count
        self.owner, self.type, self.code = words16(owner), octets(kind), octets(code)
        self.type_count, self.refs = words32(type_count), words32(refs)
        self.exec_count, self.lent = words32(exec_count), words32(lent)
        self.pinned, self.last_l2 = octets(pinned), octets(last_l2)
        self.linear_in, self.linear_out = words32(linear_in), words32(linear_out)

    def last_dropped(self, mfn: int) -> None:
        """Nobody refers to a frame any more: it is free."""
        raise NotImplementedError

    def may_be_writable(self, mfn: int) -> bool:
        """Whether a frame may be mapped writable: while nothing of another type refers to it."""
        return not self.type_count[mfn] or self.type[mfn] == WRITABLE

    def take(self, mfn: int) -> None:
        """Take a general reference (Xen: get_page); the caller has checked the owner."""
        self.refs[mfn] += 1

    def drop(self, mfn: int) -> None:
        """Drop a general reference (Xen: put_page) and free the frame with the last one."""
        left = self.refs[mfn] - 1
        self.refs[mfn] = left
        if left == 0:
            self.last_dropped(mfn)

    def take_writable(self, mfn: int) -> bool:
        """Take a general and a writable type reference (Xen: get_page_and_type); False if the frame is in use
        as something else."""
        if not self.may_be_writable(mfn):
            return False
        self.type[mfn] = WRITABLE
        self.type_count[mfn] += 1
        self.refs[mfn] += 1
        return True

    def drop_writable(self, mfn: int) -> None:
        """Drop what `take_writable` took (Xen: put_page_and_type)."""
        self.type_count[mfn] -= 1
        self.drop(mfn)
