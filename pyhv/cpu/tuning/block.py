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

A stub loads the pointer and compares the word before it with MAGIC. In an engine that is not ours the pointer
leads to the library's own function, and the eight bytes before that are some code.

The block is one page of private memory (after a `fork` parent and child have their own), freed with the
engine.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Final

import keystone

from pyhv.cpu import binding
from pyhv.cpu.ram import Ram
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.form import Patch, Word

MAGIC: Final = 0x7079_6876_4E61_C301
_CODE_AT: Final = 2048
_CODE_SIZE: Final = mmap.PAGESIZE - _CODE_AT
_MOST_WORDS: Final = _CODE_AT // 8


@dataclass(frozen=True)
class Facts:
    """What an initial value of a word may depend on. `keep` holds memory for as long as the engine lives."""

    ram: Ram
    handle: int
    region: int
    """Address of the library's description of RAM as a memory region."""
    find_region: int
    """Address of the library's function that the engine's own one replaces."""
    keep: list[object]


COMMON: Final = (
    Word("magic", lambda _facts: MAGIC),
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


def words_of(patches: Sequence[Patch]) -> SimpleNamespace:
    """The words of a block for these patches, as attributes: offsets from the block's address.

    ValueError if two patches use one name, or if the words do not fit.
    """
    words = [*COMMON, *(word for patch in patches for word in patch.words)]
    offsets = {word.name: -8 * number for number, word in enumerate(words, 1)}
    if len(offsets) != len(words) or len(words) > _MOST_WORDS:
        raise ValueError("two words of the engine's block have one name, or there are too many")
    return SimpleNamespace(**offsets)


class Block:
    """The block of one engine, attached to it from the start until `detach`."""

    def __init__(
        self, handle: int, ram: Ram, region: int, patches: Sequence[Patch], words: SimpleNamespace
    ) -> None:
        self._pointer = ctypes.c_uint64.from_address(handle + layout.UC_MEMORY_MAPPING)
        self._original = self._pointer.value
        self._page = mmap.mmap(
            -1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        )  # fmt: skip
        self._keep: list[object] = []
        facts = Facts(ram, handle, region, self._original, self._keep)
        self._offsets = words
        self._words = memoryview(self._page).cast("Q")
        for word in (*COMMON, *(word for patch in patches for word in patch.words)):
            self[word.name] = word.initial(facts)
        code = _find_region_code(words.ram_size, words.region, words.find_region)
        self._page[_CODE_AT : _CODE_AT + len(code)] = code
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._page)) + _CODE_AT
        self._pointer.value = self.address

    def _index(self, name: str) -> int:
        offset: int = getattr(self._offsets, name)
        return (_CODE_AT + offset) // 8

    def __getitem__(self, name: str) -> int:
        return self._words[self._index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[self._index(name)] = value

    def detach(self) -> None:
        """Give the engine its own function back: it is plain again, and about to be freed."""
        self._pointer.value = self._original
        self._keep.clear()


@functools.cache
def _find_region_code(ram_size: int, region: int, find_region: int) -> bytes:
    """The engine's own find_memory_mapping: the same bytes for each engine."""
    source = _FIND_REGION.format(ram_size=ram_size, region=region, find_region=find_region)
    encoding, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(source)
    return bytes(encoding)


def region_of(handle: int, ram: Ram) -> int | None:
    """The one memory region of an engine over `ram`; None if its memory is not exactly that.

    Also None if the engine's pointer is not the one that this build of the library puts there.
    """
    address = binding.symbol_address("find_memory_mapping" + layout.SUFFIX)
    if address is None or ctypes.c_uint64.from_address(handle + layout.UC_MEMORY_MAPPING).value != address:
        return None
    find: Callable[[int, int], int | None] = ctypes.CFUNCTYPE(
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64
    )(address)
    region = find(handle, 0)
    if not region or find(handle, ram.size - 1) != region or find(handle, ram.size):
        return None
    return region
