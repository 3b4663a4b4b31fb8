# SPDX-License-Identifier: GPL-2.0-only
"""The machine's RAM: one mapping that every engine maps and Python sees through views.

Views of the same bytes, for reading: `raw` (memoryview of bytes), `q` and `d` (64- and 32-bit words) and
`tables` (numpy, one row of 512 words a frame, for whole page tables). Who owns a frame is `mmu/`'s concern.

What the hypervisor stores goes through two doors, and each notes which frames were written (`take_dirty`).
Frames of the hypervisor's own are written by the `store` methods here. Frames that a guest can see may hold
translated code, which the emulator must hear of: `mmu/physical.py` stores there. Nobody else uses `writable`,
the same views for writing (`tests/docs/test_layers.py`).

RAM can be frozen (`freeze`), put back (`revert`) and shared by copies of itself (`Ram.of`) without copying
more than what was written in between; `layers.py` tells how. The address never changes, so that engines and
views stay what they are. Nothing may execute or store meanwhile.
"""

import ctypes
import mmap
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pyhv.address import PAGE_SHIFT, PAGE_SIZE
from pyhv.cpu.layers import Image, Layer, MfnArray, private_copies, runs, runs_of_equal
from pyhv.errors import ConfigError

_MOST_VIEWS: Final = 8192
"""More mappings than that become one: the kernel allows a process 65,530 (vm.max_map_count)."""
_NEAR: Final = 4
"""Frames between two that were written are copied with them: one mapping is dearer than that."""
_FEW: Final = 16
"""So many frames are rather filled with zeros than mapped anew."""


class Views(NamedTuple):
    """The bytes of memory, as bytes, as words of 64 and 32 bits, and as rows of 512 words."""

    raw: memoryview
    q: memoryview
    d: memoryview
    tables: npt.NDArray[np.uint64]


class Ram:
    """`frames` zeroed page frames of machine memory; the host provides a frame when it is first written."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.size = frames << PAGE_SHIFT
        try:
            # Keeps the addresses; a mapping of the file made by this module would keep the file as well.
            self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(
                f"This host cannot provide {self.size >> 20} MiB of memory for the machine ({error});"
                " ask for less with --memory."
            ) from error
        self.writable = _views(memoryview(self._map))
        self.raw, self.q, self.d, self.tables = _views(memoryview(self._map).toreadonly())
        self.dirty_np = np.zeros(frames, dtype=np.uint8)
        self.dirty = self.dirty_np.data
        """1 for each frame that the hypervisor has written since `take_dirty`."""
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._open: Layer | None = Layer(frames)
        """The file that is written directly, until it is frozen; None from then on."""
        self._open.view_at(self.address, 0, frames, shared=True)
        self._layers: list[Layer] = [self._open]
        self._of_frame = np.zeros(frames, dtype=np.int32)
        self._holes: int | None = None
        """The layer without contents, for frames that are given back while memory is private."""

    @classmethod
    def of(cls, image: Image) -> Self:
        """A RAM of its own that begins with the contents of `image`."""
        ram = cls(image.frames)
        ram.revert(image)
        return ram

    def frame(self, mfn: int) -> memoryview:
        """The bytes of one frame."""
        return self.raw[mfn << PAGE_SHIFT : (mfn << PAGE_SHIFT) + PAGE_SIZE]

    # -- the hypervisor's stores -------------------------------------------------------------------------

    def store_u64(self, address: int, value: int) -> None:
        """Store an aligned 64-bit word into a frame of the hypervisor's own."""
        self.writable.q[address >> 3] = value
        self.dirty[address >> PAGE_SHIFT] = 1

    def store_u32(self, address: int, value: int) -> None:
        """The same for a 32-bit word."""
        self.writable.d[address >> 2] = value
        self.dirty[address >> PAGE_SHIFT] = 1

    def store_row(self, mfn: int, row: npt.NDArray[np.uint64] | int) -> None:
        """Store all 512 words of a frame of the hypervisor's own, or one value 512 times."""
        self.writable.tables[mfn] = row
        self.dirty[mfn] = 1

    def store_words(
        self,
        first: int,
        indices: npt.NDArray[np.int64],
        values: npt.NDArray[np.uint64] | npt.NDArray[np.uint32] | int,
        dtype: type[np.uint64] | type[np.uint32] = np.uint64,
    ) -> None:
        """Store many words of an array that lies in frames of the hypervisor's own from `first` on."""
        words = self.writable.tables.reshape(-1)[first << 9 :].view(dtype)
        words[indices] = values
        self.dirty_np[first + indices // (PAGE_SIZE // words.itemsize)] = 1

    def take_dirty(self) -> MfnArray:
        """Frames that the hypervisor has written since this was last asked, ascending; none is dirty now.

        Those that were given back or put back by `revert` are among them. What guests have stored themselves
        is not: with that, `written` answers.
        """
        found = np.flatnonzero(self.dirty_np)
        self.dirty_np[:] = 0
        return found

    # -- giving back -------------------------------------------------------------------------------------

    def clear(self, mfns: MfnArray) -> None:
        """Zero frames, given in ascending order, and give their memory back to the host until they are used.

        The host is told of whole runs: it knows which of their pages exist, whereas storing zeros would bring
        the others into existence.
        """
        for first, count in runs(mfns):
            self.clear_run(first, count)

    def clear_run(self, first: int, count: int = 1) -> None:
        """`clear` for `count` frames from `first` on."""
        self.dirty_np[first : first + count] = 1
        if self._open is not None:
            try:
                # Reads as zeros again (madvise(2), MADV_REMOVE: a hole in the file).
                self._map.madvise(mmap.MADV_REMOVE, first << PAGE_SHIFT, count << PAGE_SHIFT)
            except OSError:  # memory that the process has locked cannot be given back
                self.writable.tables[first : first + count] = 0
        elif count <= _FEW:
            self.writable.tables[first : first + count] = 0
        else:
            if self._holes is None:
                self._holes = self._add(Layer(self.frames))
            self._layers[self._holes].view_at(self.address, first, count)
            self._of_frame[first : first + count] = self._holes

    # -- images ------------------------------------------------------------------------------------------

    def freeze(self) -> Image:
        """The contents as they are now; what is written from now on, is written to private copies.

        EnvironmentProblem: the host has no memory left for it. Then nothing has changed.
        """
        if self._open is not None:
            self._open.view_at(self.address, 0, self.frames)
            self._open = None
        else:
            self._fix(self.written())
        return Image(tuple(self._layers), self._of_frame.copy())

    def written(self) -> MfnArray:
        """Frames that were written since the last `freeze` or `revert`, ascending. All, if there was none."""
        if self._open is not None:
            return np.arange(self.frames)
        return private_copies(self.address, self.frames)

    def provided(self, first: int, count: int) -> MfnArray:
        """Which of `count` frames from `first` on may hold something else than zeros, ascending."""
        of_frame = self._of_frame[first : first + count]
        found = np.zeros(count, dtype=np.bool_)
        for number in np.unique(of_frame).tolist():
            layer = self._layers[number]
            exist = layer.exist[first : first + count] if self._open is None else layer.exist_in(first, count)
            found |= (of_frame == number) & exist
        if self._open is None:
            found[private_copies(self.address + (first << PAGE_SHIFT), count)] = True
        return np.flatnonzero(found) + first

    def revert(self, image: Image) -> MfnArray:
        """Put back the contents of `image`, one of this RAM or of one that began with the same image.

        Returns the frames whose contents may be others now, ascending.
        """
        changed = np.zeros(self.frames, dtype=np.bool_)
        changed[self.written()] = True
        for first, count in runs(np.flatnonzero(changed)) if self._open is None else ():
            try:
                self._map.madvise(mmap.MADV_DONTNEED, first << PAGE_SHIFT, count << PAGE_SHIFT)
            except OSError:  # memory that the process has locked
                for start, length, number in runs_of_equal(self._of_frame[first : first + count]):
                    self._layers[number].view_at(self.address, first + start, length)
        changed[self._view(image)] = True
        self._open = None
        self.dirty_np[changed] = 1
        return np.flatnonzero(changed)

    def _view(self, image: Image) -> MfnArray:
        """View `image`'s layers where others are viewed now, and count only those from now on."""
        numbers = {id(layer): number for number, layer in enumerate(image.layers)}
        here = np.array([numbers.get(id(layer), -1) for layer in self._layers], dtype=np.int32)
        differ = np.flatnonzero(here[self._of_frame] != image.of_frame)
        viewed = np.full(self.frames, -1, dtype=np.int32)
        viewed[differ] = image.of_frame[differ]
        for first, count, number in runs_of_equal(viewed):
            if number >= 0:
                image.layers[number].view_at(self.address, first, count)
        self._layers = list(image.layers)
        self._holes = None
        self._of_frame = image.of_frame.copy()
        return differ

    def _add(self, layer: Layer) -> int:
        self._layers.append(layer)
        return len(self._layers) - 1

    def _fix(self, written: MfnArray) -> None:
        """Move private copies to a new layer, and everything to one if there would be too many mappings."""
        if not written.size:
            return
        pieces = runs(_with_gaps_closed(written, self.frames))
        layer = Layer(self.frames)
        if len(pieces) + len(runs_of_equal(self._of_frame)) > _MOST_VIEWS:
            existing = Image(tuple(self._layers), self._of_frame).existing()
            self._store(layer, runs(np.union1d(existing, written)))
            layer.view_at(self.address, 0, self.frames)
            self._layers, self._holes = [layer], None
            self._of_frame[:] = 0
            return
        self._store(layer, pieces)
        number = self._add(layer)
        for first, count in pieces:
            layer.view_at(self.address, first, count)
            self._of_frame[first : first + count] = number
        self._forget_unused()

    def _store(self, layer: Layer, pieces: list[tuple[int, int]]) -> None:
        for first, count in pieces:
            layer.store(first, self.raw[first << PAGE_SHIFT : first + count << PAGE_SHIFT])

    def _forget_unused(self) -> None:
        """Let go of layers that hold no frame's contents any more."""
        used = np.unique(self._of_frame)
        if used.size < len(self._layers):
            self._of_frame = np.searchsorted(used, self._of_frame).astype(np.int32)
            self._layers = [self._layers[number] for number in used.tolist()]
            self._holes = None


def _views(raw: memoryview) -> Views:
    tables = np.frombuffer(raw, dtype=np.uint64).reshape(-1, 512)
    return Views(raw, raw.cast("Q"), raw.cast("I"), tables)


def _with_gaps_closed(mfns: MfnArray, frames: int) -> MfnArray:
    """Ascending frame numbers, with those of the small gaps between them."""
    gaps = np.diff(mfns)
    near = np.flatnonzero((gaps > 1) & (gaps <= _NEAR))
    chosen = np.zeros(frames, dtype=np.bool_)
    chosen[mfns] = True
    for left, right in zip(mfns[near].tolist(), mfns[near + 1].tolist(), strict=True):
        chosen[left:right] = True
    return np.flatnonzero(chosen)
