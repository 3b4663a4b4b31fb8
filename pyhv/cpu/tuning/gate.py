# SPDX-License-Identifier: GPL-2.0-only
"""The one gate to the emulator's code paths: all that is asked for fits and is proven, or nothing is touched.

`tuning()` decides once per process. What it answers with, `Tuning`, makes single engines tuned; an engine
that is not attached keeps the library's own paths, whatever else this process does.
"""

import ctypes
import functools
import mmap
import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import keystone

from pyhv.cpu import binding
from pyhv.cpu.probe import find_no_exit_request
from pyhv.cpu.ram import Ram
from pyhv.cpu.slots import Library, library
from pyhv.cpu.trial import BrokenPromise, Trial
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.block import MAGIC, Block, region_of, words_of
from pyhv.cpu.tuning.catalogue import PATCHES
from pyhv.cpu.tuning.form import Patch, Stub

SWITCH = "PYHV_ENGINE_TUNING"
"""Environment variable: "0" leaves the library alone."""

_TAIL = "\nnext:\n    movabs rax, {next}\n    jmp rax\n"
_ALIGNMENT = 16


class _Unfit(Exception):
    """Why nothing is changed, for `pyhv doctor`."""


@dataclass
class Tuning:
    """The process's answer. `active`: engines can be tuned; else `why_not` is one sentence."""

    active: bool = False
    why_not: str = ""
    patches: tuple[Patch, ...] = ()
    _words: SimpleNamespace = field(default_factory=SimpleNamespace)

    def attach(self, handle: int, ram: Ram) -> Block | None:
        """Tune a new engine over `ram`; None if it is to stay as it is. `Block.detach` before it is freed."""
        if not self.active:
            return None
        region = region_of(handle, ram)
        return None if region is None else Block(handle, ram, region, self.patches, self._words)


class _Functions:
    """`{real.NAME}` in a stub: the address of an exported function."""

    def __getattr__(self, name: str) -> int:
        address = binding.symbol_address(name + layout.SUFFIX)
        if address is None:
            raise _Unfit(f"the library does not export {name}")
        return address


class _Installation:
    """Stubs of a list of patches, assembled and then put into their slots."""

    def __init__(self, patches: Sequence[Patch], lib: Library) -> None:
        self.words = words_of(patches)
        self._lib = lib
        self._code = mmap.mmap(
            -1, _size_of(patches), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        )  # fmt: skip
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._used = 0
        self._assembler = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
        self._before: dict[str, int] = {}
        chains: dict[str, list[Stub]] = {}
        for patch in patches:
            for stub in patch.stubs:
                chains.setdefault(stub.slot, []).append(stub)
        self._entries = {slot + layout.SUFFIX: self._chain(stubs) for slot, stubs in chains.items()}

    def _chain(self, stubs: list[Stub]) -> int:
        """Assemble the stubs of one slot, the last one first; the address at which the first one starts."""
        functions = _Functions()
        following: int = getattr(functions, stubs[0].slot)
        for stub in reversed(stubs):
            source = (stub.source + _TAIL).format(
                next=following, real=functions, word=self.words, magic=MAGIC
            )
            following = self._base + self._used
            encoding, _ = self._assembler.asm(source, following)
            self._code[self._used : self._used + len(encoding)] = bytes(encoding)
            self._used += len(encoding) + _ALIGNMENT - 1 & -_ALIGNMENT
        return following

    def check(self) -> None:
        """_Unfit if a slot is missing, or leads to something that we do not know."""
        for name in self._entries:
            if self._lib.slot(name) is None:
                raise _Unfit(f"the library's pointer to {name} is not there or cannot be written")
            if not self._lib.is_untouched(name):
                raise _Unfit(f"somebody else has changed the library's pointer to {name}")

    def install(self) -> None:
        """Lead all slots to the stubs."""
        for name, entry in self._entries.items():
            slot = self._lib.slot(name)
            assert slot is not None
            self._before[name] = slot.value
            slot.value = entry

    @property
    def holds(self) -> bool:
        """Whether all slots still lead to the stubs.

        A thread that was in the midst of its first call of a function when its slot was written may have
        put the old value back.
        """
        return all(
            self._lib.slots[name] and _value(self._lib, name) == entry
            for name, entry in self._entries.items()
        )

    def remove(self) -> None:
        """Put back what was there. The code stays: another thread may be in it."""
        for name, value in self._before.items():
            slot = self._lib.slot(name)
            assert slot is not None
            slot.value = value
        _abandoned.append(self._code)


_abandoned: list[mmap.mmap] = []
_installed: list[_Installation] = []


def _value(lib: Library, name: str) -> int:
    slot = lib.slot(name)
    return 0 if slot is None else slot.value


def _size_of(patches: Sequence[Patch]) -> int:
    """Room enough for the patches' code: no instruction that we write is longer than its text."""
    text = sum(len(stub.source) + len(_TAIL) + _ALIGNMENT for patch in patches for stub in patch.stubs)
    return text + mmap.PAGESIZE - 1 & -mmap.PAGESIZE or mmap.PAGESIZE


def _prove(tuning: Tuning) -> None:
    """Run the proofs on throwaway engines. BrokenPromise if one does not hold."""
    for patch in tuning.patches:
        with Trial(tuning) as trial:
            trial.expect("a throwaway engine can be tuned", trial.engine.tuned)
            patch.proof(trial)


def make_tuning(patches: tuple[Patch, ...] = PATCHES) -> Tuning:
    """Install the patches and prove them; if that fails, change nothing and say why."""
    if os.environ.get(SWITCH) == "0":
        return Tuning(why_not=f"{SWITCH}=0 is set")
    lib = library()
    if platform.machine() != "x86_64":
        return Tuning(why_not=f"it is for x86-64 hosts, and this is {platform.machine()}")
    if lib.build_id != layout.BUILD_ID:
        return Tuning(why_not=f"the library is another build ({lib.build_id or 'without a build-id'})")
    if find_no_exit_request() is None:
        return Tuning(why_not="the library's look for a stop after each load and store cannot be removed")
    try:
        installation = _Installation(patches, lib)
        installation.check()
    except _Unfit as unfit:
        return Tuning(why_not=str(unfit))
    except OSError as error:
        return Tuning(why_not=f"the host gives no memory that is writable and executable ({error})")
    installation.install()
    tuning = Tuning(active=True, patches=patches, _words=installation.words)
    try:
        _prove(tuning)
        if not installation.holds:
            raise BrokenPromise("pointers that were written keep their values")
    except BrokenPromise as broken:
        installation.remove()
        return Tuning(why_not=f"its proof failed: {broken.promise}")
    _installed.append(installation)
    return tuning


_lock = threading.Lock()


@functools.cache
def _the_tuning() -> Tuning:
    return make_tuning()


def tuning() -> Tuning:
    """The process's tuning, decided at the first call."""
    with _lock:
        return _the_tuning()
