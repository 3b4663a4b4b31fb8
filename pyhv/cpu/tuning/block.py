# SPDX-License-Identifier: GPL-2.0-only
"""What a stub must know of one engine: a block of words, found through a pointer that the engine has anyway.

Each engine holds a pointer to the function that finds the memory region of a physical address. A tuned
engine gets a function of its own, which is faster besides, as there is one region; the block's words lie
right before that function's first byte:

      block - 8 * n       ...            block - 16      block - 8   block
    ┌────────────────┬────────────────┬────────────────┬───────────┬─────────────────────────────┐
    │ words of the   │ ...            │ RAM's address  │   MAGIC   │ code of the engine's own    │
    │ patches        │                │                │           │ find_memory_mapping         │
    └────────────────┴────────────────┴────────────────┴───────────┴─────────────────────────────┘

A stub loads the pointer and compares the word before it with MAGIC, a number that no other tuning of this
process has. In an engine that is not ours the pointer leads to the library's own function, and the eight
bytes before that are some code.

The block is one page of private memory (after a `fork` parent and child have their own), freed with the
engine.
"""

import ctypes
import itertools
import mmap
from collections.abc import Callable, Sequence
from typing import Final

from pyhv.cpu import binding
from pyhv.cpu.native_code import code
from pyhv.cpu.ram import Ram
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.form import Facts, Patch, Word

_MAGIC: Final = 0x7079_6876_4E61_0000
_tunings = itertools.count(1)
_CODE_AT: Final = 2048
_CODE_SIZE: Final = mmap.PAGESIZE - _CODE_AT
_MOST_WORDS: Final = _CODE_AT // 8


COMMON: Final = (
    Word("magic", lambda facts: facts.magic),
    Word("ram_address", lambda facts: facts.ram.address),
    Word("ram_size", lambda facts: facts.ram.size),
    Word("region", lambda facts: facts.region),
    Word("find_region", lambda facts: facts.find_region),
)
"""Words of every block. `ram_address` is the host's address of machine address 0, `ram_size` is in bytes."""

# rdi = engine, rsi = physical address; the region in RAX.
_FIND_REGION: Final = """
    cmp rsi, qword ptr [rip + {ram_size} - 7]
    jae elsewhere
    mov rax, qword ptr [rip + {region} - 16]
    ret
elsewhere:
    jmp qword ptr [rip + {find_region} - 23]
"""


class BlockLayout:
    """The words of one tuning's blocks. ValueError if two patches use one name, or they do not fit."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        self.magic = _MAGIC | next(_tunings)
        self.words = [*COMMON, *(word for patch in patches for word in patch.words)]
        self.offsets = {word.name: -8 * number for number, word in enumerate(self.words, 1)}
        """Of each word, from the block's address."""
        if len(self.offsets) != len(self.words) or len(self.words) > _MOST_WORDS:
            raise ValueError("two words of the engine's block have one name, or there are too many")
        self.pointers = [pointer for patch in patches for pointer in patch.pointers]
        self.code: dict[str, int] = {}
        """Addresses of the pointers' code, by their names, once it is there."""


class Block:
    """The block of one engine, from its start until `detach`. Words are read and set by name."""

    def __init__(
        self, handle: int, ram: Ram, region: int, form: BlockLayout, counter: tuple[int, int]
    ) -> None:
        self._pointer = ctypes.c_uint64.from_address(handle + layout.UC_MEMORY_MAPPING)
        self._original = self._pointer.value
        self._offsets = form.offsets
        self._memory: list[mmap.mmap] = []
        base = self._allocate(mmap.PAGESIZE, mmap.PROT_EXEC)
        self.address = base + _CODE_AT
        processor = ctypes.c_uint64.from_address(handle + layout.UC_CPU).value
        facts = Facts(ram, processor, region, self._original, form.magic, counter, self._allocate)
        for word in form.words:
            self[word.name] = word.initial(facts)
        find_region = _find_region_code(
            *(form.offsets[name] for name in ("ram_size", "region", "find_region"))
        )
        self._memory[0][_CODE_AT : _CODE_AT + len(find_region)] = find_region
        self._others = [ctypes.c_uint64.from_address(pointer.place(facts)) for pointer in form.pointers]
        for other, pointer in zip(self._others, form.pointers, strict=True):
            other.value = form.code[pointer.name]
        self._pointer.value = self.address

    def _allocate(self, size: int, more: int = 0) -> int:
        made = mmap.mmap(
            -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | more,
        )  # fmt: skip
        self._memory.append(made)
        return ctypes.addressof(ctypes.c_char.from_buffer(made))

    def __getitem__(self, name: str) -> int:
        return ctypes.c_uint64.from_address(self.address + self._offsets[name]).value

    def __setitem__(self, name: str, value: int) -> None:
        ctypes.c_uint64.from_address(self.address + self._offsets[name]).value = value

    def __contains__(self, name: str) -> bool:
        return name in self._offsets

    def array(self, name: str, count: int) -> memoryview | None:
        """The `count` 32-bit words that the word `name` points to, None if no patch has that. Not to be
        touched after `detach`."""
        if name not in self:
            return None
        words = (ctypes.c_uint32 * count).from_address(self[name])
        return memoryview(words).cast("B").cast("I")

    def detach(self) -> None:
        """Give the engine its own function back, and the memory to the host. It must be freed next."""
        self._pointer.value = self._original
        for other in self._others:
            other.value = 0
        for made in self._memory:
            made.close()


def _find_region_code(ram_size: int, region: int, find_region: int) -> bytes:
    """The engine's own find_memory_mapping: the same bytes for each engine."""
    source = _FIND_REGION.format(ram_size=ram_size, region=region, find_region=find_region)
    return code("find-region", source)


_FIND_REGION_TYPE: Final = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)


def region_of(handle: int, ram: Ram) -> int | None:
    """The one memory region of an engine over `ram`; None if its memory is not exactly that.

    Also None if the engine's pointer is not the one that this build of the library puts there.
    """
    address = binding.symbol_address("find_memory_mapping" + layout.SUFFIX)
    if address is None or ctypes.c_uint64.from_address(handle + layout.UC_MEMORY_MAPPING).value != address:
        return None
    find: Callable[[int, int], int | None] = _FIND_REGION_TYPE(address)
    region = find(handle, 0)
    if not region or find(handle, ram.size - 1) != region or find(handle, ram.size):
        return None
    return region
