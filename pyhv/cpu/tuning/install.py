# SPDX-License-Identifier: GPL-2.0-only
"""The stubs of a list of patches: linked, checked against the library, put into its slots, taken out.

Nothing is written before everything is known to fit. Only slots are written, each with one store of eight
bytes, so that a thread that runs another engine meanwhile calls either the function or the stub.
"""

import ctypes
import mmap
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Final

from pyhv.cpu import binding
from pyhv.cpu.native_code import Template, templates
from pyhv.cpu.slots import Library
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.block import BlockLayout
from pyhv.cpu.tuning.form import Patch

_TAIL: Final = "\nnext:\n    movabs rax, {next}\n    jmp rax\n"
_ALIGNMENT: Final = 16


class Unfit(Exception):
    """Why these patches are not for this library, in one clause."""


def _function(name: str) -> int:
    """The address of an exported function: `{real.NAME}` in a stub."""
    address = binding.symbol_address(name + layout.SUFFIX)
    if address is None:
        raise Unfit(f"the library does not export {name}")
    return address


class Installation:
    """The patches' code, ready to be installed.

    Unfit if a slot or function is missing or a slot leads to something that we do not know; OSError if the
    host gives no memory that is writable and executable.
    """

    def __init__(self, patches: Sequence[Patch], library: Library) -> None:
        self.form = BlockLayout(patches)
        slots = {stub.slot for patch in patches for stub in patch.stubs}
        self._slots = {slot: _usable_slot(library, slot + layout.SUFFIX) for slot in slots}
        self._code = mmap.mmap(
            -1, _size_of(patches), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        )  # fmt: skip
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._used = 0
        chains: dict[str, list[Template]] = {slot: [] for slot in slots}
        for patch in patches:
            pointers, stubs = self._templates(patch)
            for pointer, template in zip(patch.pointers, pointers, strict=True):
                self.form.code[pointer.name] = self._place(template)
            for stub, template in zip(patch.stubs, stubs, strict=True):
                chains[stub.slot].append(template)
        self._entries = {slot: self._chain(slot, chain) for slot, chain in chains.items()}
        self._before: dict[str, int] = {}

    def _templates(self, patch: Patch) -> tuple[list[Template], list[Template]]:
        """Of a patch's pointers and of its stubs."""
        sources = [pointer.source for pointer in patch.pointers] + [
            stub.source + _TAIL for stub in patch.stubs
        ]
        words = SimpleNamespace(**self.form.offsets)
        made = templates(f"tuning-{patch.name.replace(' ', '-')}", *sources, constants={"word": words})
        return made[: len(patch.pointers)], made[len(patch.pointers) :]

    def _chain(self, slot: str, stubs: list[Template]) -> int:
        """Place the stubs of one slot, the last one first; the address at which the first one starts."""
        following = _function(slot)
        for stub in reversed(stubs):
            following = self._place(stub, following)
        return following

    def _place(self, template: Template, following: int = 0) -> int:
        """Put code in its place, with numbers for its names; the address at which it now is."""
        known = {"next": following, "magic": self.form.magic}
        values = {name: known.get(name) or _function(name.removeprefix("real.")) for name in template.names}
        at = self._base + self._used
        linked = template.link(at, values)
        self._code[self._used : self._used + len(linked)] = linked
        self._used += len(linked) + _ALIGNMENT - 1 & -_ALIGNMENT
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
