# SPDX-License-Identifier: GPL-2.0-only
"""A guest's memory by virtual address, as one of its vCPUs sees it now.

    guest.memory[va : va + 16]              bytes
    guest.memory[va : va + 4] = b"\\x90" * 4
    guest.memory.u64(va)                    a little-endian word

Every address is translated through the guest's own page tables, those of the mode that the vCPU is in. What
is not mapped is a `NotMapped`, which tells the level at which the walk ended. Rights do not matter: a page
that the guest has mapped read-only can be written here, as a debugger would.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final, overload

from pyhv.abi.x86 import PTE_MFN_MASK, PTE_P
from pyhv.address import MASK64, PAGE_MASK, PAGE_SIZE, MachineAddress
from pyhv.domain.domain import Domain
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import PyhvError

_LEVELS: Final = ((4, 39), (3, 30), (2, 21), (1, 12))
_MOST: Final = 1 << 30
"""Bytes that are read or written at once."""


class NotMapped(PyhvError, LookupError):
    """An address that the guest's page tables do not lead to; the message says where they end."""


class Memory:
    """The memory of a guest that is not running right now."""

    def __init__(self, domain: Domain, vcpu: Vcpu, store: Callable[[int, bytes], None]) -> None:
        """`store` takes what is written, with its machine address."""
        self._domain = domain
        self._vcpu = vcpu
        self._store = store

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> bytes: ...
    def __getitem__(self, where: int | slice) -> int | bytes:
        """One byte, or the bytes from a virtual address to another. NotMapped."""
        if isinstance(where, slice):
            start, length = _extent(where)
            return self.read(start, length)
        return self.read(where, 1)[0]

    def __setitem__(self, where: slice, data: bytes) -> None:
        """Store bytes, as many as the addresses span. NotMapped: then nothing is stored."""
        start, length = _extent(where)
        if length != len(data):
            raise ValueError(f"{len(data)} bytes do not fill {length} addresses")
        self.write(start, data)

    def read(self, va: int, length: int) -> bytes:
        """`length` bytes from `va` on. NotMapped."""
        raw = self._domain.ram.raw
        return b"".join(raw[at : at + count] for at, count in list(self._pieces(va, length)))

    def write(self, va: int, data: bytes) -> None:
        """Store `data` from `va` on. NotMapped: then nothing is stored."""
        view = memoryview(data)
        for at, count in list(self._pieces(va, len(data))):
            self._store(at, bytes(view[:count]))
            view = view[count:]

    def u64(self, va: int) -> int:
        """The 64-bit word at `va`. NotMapped."""
        return int(struct.unpack("<Q", self.read(va, 8))[0])

    def u32(self, va: int) -> int:
        """The 32-bit word at `va`. NotMapped."""
        return int(struct.unpack("<I", self.read(va, 4))[0])

    def text(self, va: int, most: int = 4096) -> str:
        """The text at `va` up to its NUL, or `most` bytes of it. NotMapped."""
        found = bytearray()
        while len(found) < most:
            step = min(PAGE_SIZE - (va & PAGE_MASK), most - len(found))
            piece = self.read(va, step)
            end = piece.find(0)
            found += piece if end < 0 else piece[:end]
            if end >= 0:
                break
            va += step
        return found.decode("utf-8", "replace")

    def machine_address(self, va: int) -> MachineAddress:
        """Where a virtual address is in the machine's memory. NotMapped."""
        q = self._domain.ram.q
        table = self._top()
        entry = table << 12 | PTE_P
        for level, shift in _LEVELS[self._domain.width == 32 :]:
            table, slot = (entry & PTE_MFN_MASK) >> 12, va >> shift & 511
            entry = q[table << 9 | slot]
            if not entry & PTE_P:
                raise NotMapped(
                    f"{self._domain.name}: {va:#x} is not mapped: entry {slot} of its L{level} table"
                    f" (mfn {table:#x}) is not present"
                )
        return MachineAddress(entry & PTE_MFN_MASK | va & PAGE_MASK)

    def _top(self) -> int:
        vcpu = self._vcpu
        top = vcpu.paging.kernel_l4 if vcpu.in_kernel or not vcpu.paging.user_l4 else vcpu.paging.user_l4
        if not top:
            raise NotMapped(f"{self._domain.name}: {vcpu.name} has no page tables yet")
        return top

    def _pieces(self, va: int, length: int) -> Iterator[tuple[int, int]]:
        """A range of virtual addresses as (machine address, bytes), page by page."""
        if not 0 <= va <= MASK64 or not 0 <= length <= min(_MOST, MASK64 + 1 - va):
            raise ValueError(f"{length} bytes at {va:#x} are no memory that a guest could have")
        while length:
            step = min(length, PAGE_SIZE - (va & PAGE_MASK))
            yield self.machine_address(va), step
            va, length = va + step, length - step


def _extent(where: slice) -> tuple[int, int]:
    if where.start is None or where.stop is None or where.step is not None:
        raise ValueError("name both addresses, first:end, and no step")
    return where.start, max(where.stop - where.start, 0)
