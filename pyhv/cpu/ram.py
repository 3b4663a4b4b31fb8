# SPDX-License-Identifier: GPL-2.0-only
"""The machine's RAM: one anonymous mapping that every engine maps and Python sees through views.

Three views of the same bytes: `raw` (memoryview of bytes), `q` (64-bit words, for single entries) and
`tables` (numpy, one row of 512 words a frame, for whole page tables). Who owns a frame is `mmu/`'s concern.

Writing through these views does not tell the emulator: whoever writes to a frame that may hold translated
code goes through `mmu.memory`, which invalidates.
"""

import ctypes
import mmap

import numpy as np
import numpy.typing as npt

from pyhv.address import PAGE_SHIFT, PAGE_SIZE
from pyhv.errors import ConfigError

MfnArray = npt.NDArray[np.int64]


def runs(mfns: MfnArray) -> list[tuple[int, int]]:
    """Ascending frame numbers as runs of consecutive ones: (first, count)."""
    if not mfns.size:
        return []
    breaks = np.flatnonzero(np.diff(mfns) != 1) + 1
    starts, ends = np.concatenate(([0], breaks)), np.concatenate((breaks, [mfns.size]))
    return list(zip(mfns[starts].tolist(), (ends - starts).tolist(), strict=True))


class Ram:
    """`frames` zeroed page frames of machine memory; the host provides a frame when it is first written."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.size = frames << PAGE_SHIFT
        try:
            self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(
                f"This host cannot provide {self.size >> 20} MiB of memory for the machine ({error});"
                " ask for less with --memory."
            ) from error
        self.raw = memoryview(self._map)
        self.q = self.raw.cast("Q")
        self.d = self.raw.cast("I")
        self.tables: npt.NDArray[np.uint64] = np.frombuffer(self._map, dtype=np.uint64).reshape(frames, 512)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def frame(self, mfn: int) -> memoryview:
        """The bytes of one frame."""
        return self.raw[mfn << PAGE_SHIFT : (mfn << PAGE_SHIFT) + PAGE_SIZE]

    def clear(self, mfns: MfnArray) -> None:
        """Zero frames, given in ascending order, and give their memory back to the host until they are used.

        The host is told of whole runs: it knows which of their pages exist, whereas storing zeros would bring
        the others into existence.
        """
        for first, count in runs(mfns):
            self.clear_run(first, count)

    def clear_run(self, first: int, count: int = 1) -> None:
        """`clear` for `count` frames from `first` on."""
        try:
            # Private anonymous memory that was given back reads as zeros (madvise(2), MADV_DONTNEED).
            self._map.madvise(mmap.MADV_DONTNEED, first << PAGE_SHIFT, count << PAGE_SHIFT)
        except OSError:  # memory that the process has locked cannot be given back
            self.tables[first : first + count] = 0
