# SPDX-License-Identifier: GPL-2.0-only
"""The stubs of a list of patches: assembled, checked against the library, put into its slots, taken out.

Nothing is written before everything is known to fit. Only slots are written, each with one store of eight
bytes, so that a thread that runs another engine meanwhile calls either the function or the stub.
"""

import ctypes
import mmap
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Final

from pyhv.cpu import binding
from pyhv.cpu.assembling import new_assembler
from pyhv.cpu.slots import Library
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.block import BlockLayout
from pyhv.cpu.tuning.form import Patch, Stub

_TAIL: Final = "\nnext:\n    movabs rax, {next}\n    jmp rax\n"
_ALIGNMENT: Final = 16


class Unfit(Exception):
    """Why these patches are not for this library, in one clause."""


class _Functions:
    """`{real.NAME}` in a stub: the address of an exported function."""

    def __getattr__(self, name: str) -> int:
        address = binding.symbol_address(name + layout.SUFFIX)
        if address is None:
            raise Unfit(f"the library does not export {name}")
        return address


_functions = _Functions()


class Installation:
    """The patches' code, ready to be installed.

    Unfit if a slot or function is missing or a slot leads to something that we do not know; OSError if the
    host gives no memory that is writable and executable.
    """

    def __init__(self, patches: Sequence[Patch], library: Library) -> None:
        self.form = BlockLayout(patches)
        chains: dict[str, list[Stub]] = {}
        for patch in patches:
            for stub in patch.stubs:
                chains.setdefault(stub.slot, []).append(stub)
        self._slots = {slot: _usable_slot(library, slot + layout.SUFFIX) for slot in chains}
        self._code = mmap.mmap(
            -1, _size_of(patches), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        )  # fmt: skip
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._used = 0
        self._assembler = new_assembler()
        for pointer in self.form.pointers:
            self.form.code[pointer.name] = self._assemble(pointer.source)
        self._entries = {slot: self._chain(stubs) for slot, stubs in chains.items()}
        self._before: dict[str, int] = {}

    def _chain(self, stubs: list[Stub]) -> int:
        """Assemble the stubs of one slot, the last one first; the address at which the first one starts."""
        following: int = getattr(_functions, stubs[0].slot)
        for stub in reversed(stubs):
            following = self._assemble(stub.source + _TAIL, next=following)
        return following

    def _assemble(self, source: str, **names: int) -> int:
        """Assemble code with its names filled in; the address at which it now is."""
        words = SimpleNamespace(**self.form.offsets)
        text = source.format(real=_functions, word=words, magic=self.form.magic, **names)
        at = self._base + self._used
        encoding, _ = self._assembler.asm(text, at)
        self._code[self._used : self._used + len(encoding)] = bytes(encoding)
        self._used += len(encoding) + _ALIGNMENT - 1 & -_ALIGNMENT
        return at

    def install(self) -> None:
        """Lead all slots to the stubs."""
        for name, slot in self._slots.items():
            self._before[name] = slot.value
            slot.value = self._entries[name]

    @property
    def holds(self) -> bool:
        """Whether all slots still lead to the stubs.

        A thread that was in the midst of its first call of a function when its slot was written may have
        put the old value back.
        """
        return all(slot.value == self._entries[name] for name, slot in self._slots.items())

    def remove(self) -> None:
        """Put back what was there. The code stays: another thread may be in it."""
        for name, value in self._before.items():
            self._slots[name].value = value
        _left_behind.append(self._code)


_left_behind: list[mmap.mmap] = []


def _usable_slot(library: Library, name: str) -> ctypes.c_uint64:
    slot = library.slot(name)
    if slot is None:
        raise Unfit(f"the library's pointer to {name} is not there or cannot be written")
    if not library.is_untouched(name):
        raise Unfit(f"somebody else has changed the library's pointer to {name}")
    return slot


def _size_of(patches: Sequence[Patch]) -> int:
    """Room enough for the patches' code: no instruction that we write is longer than its text."""
    sources = [stub.source for patch in patches for stub in patch.stubs]
    sources += [pointer.source for patch in patches for pointer in patch.pointers]
    text = sum(len(source) + len(_TAIL) + _ALIGNMENT for source in sources)
    return max(text + mmap.PAGESIZE - 1 & -mmap.PAGESIZE, mmap.PAGESIZE)
