# SPDX-License-Identifier: GPL-2.0-only
"""Frozen contents of memory that any number of machines share, with the host kernel's copy-on-write.

A `Layer` is a file in memory (memfd_create(2)) as large as the machine's RAM that nobody writes any more. An
`Image` is the whole of a RAM at one moment: for each frame the layer that holds its contents, at the frame's
own offset.

    image     frame   0    1    2    3    4    5   ...
    layer             A    A    B    A    C    C         A: what was there when memory was first frozen
                                                         B, C: frames that were written before later images
    live RAM  MAP_PRIVATE views of A, A, B, A, C, C      a frame that is written becomes a private copy

Taking an image of a RAM that consists of private views therefore means: find the private copies, write them
to a new layer, and view that one instead. Going back to an image means: forget the private copies. Which
frames are private copies, the kernel knows (proc_pid_pagemap(5), bit 61: the page belongs to a file).
"""

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from pyhv.address import PAGE_SHIFT
from pyhv.errors import EnvironmentProblem
from pyhv.frozen import frozen

MfnArray = npt.NDArray[np.int64]

_MAP_FIXED: Final = 0x10  # Linux, both architectures; the mmap module does not have it
_PRESENT_OR_SWAPPED: Final = np.uint64(3 << 62)
_OF_A_FILE: Final = np.uint64(1 << 61)
_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip


def runs(mfns: MfnArray) -> list[tuple[int, int]]:
    """Ascending frame numbers as runs of consecutive ones: (first, count)."""
    if not mfns.size:
        return []
    breaks = np.flatnonzero(np.diff(mfns) != 1) + 1
    starts, ends = np.concatenate(([0], breaks)), np.concatenate((breaks, [mfns.size]))
    return list(zip(mfns[starts].tolist(), (ends - starts).tolist(), strict=True))


def runs_of_equal(values: npt.NDArray[np.integer]) -> list[tuple[int, int, int]]:
    """A column as runs of equal values: (first, count, value)."""
    if not values.size:
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(values)) + 1))
    ends = np.append(starts[1:], values.size)
    return list(zip(starts.tolist(), (ends - starts).tolist(), values[starts].tolist(), strict=True))


class Layer:
    """A file in memory of `frames` page frames. It is closed when nothing refers to it any more."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        try:
            self.fd = os.memfd_create("pyhv-memory", os.MFD_CLOEXEC)
            weakref.finalize(self, os.close, self.fd)
            os.ftruncate(self.fd, frames << PAGE_SHIFT)
        except OSError as error:
            raise EnvironmentProblem(
                f"this host cannot provide a file in memory for {frames >> 8} MiB ({error.strerror})"
            ) from error

    def store(self, first: int, data: memoryview) -> None:
        """Write whole frames from `first` on; EnvironmentProblem when the host has no memory left."""
        at = first << PAGE_SHIFT
        while data:
            try:
                done = os.pwrite(self.fd, data, at)
            except OSError as error:
                raise EnvironmentProblem(
                    f"the host has no room for a snapshot's memory ({error.strerror})"
                ) from error
            data, at = data[done:], at + done

    def words(self) -> npt.NDArray[np.uint64]:
        """A view to fill the file through, one row of 512 words a frame; not after it is part of an image."""
        view = mmap.mmap(self.fd, self.frames << PAGE_SHIFT)
        return np.frombuffer(view, dtype=np.uint64).reshape(self.frames, 512)

    @cached_property
    def exist(self) -> npt.NDArray[np.bool_]:
        """`exist_in` for the whole of a file that nobody writes any more."""
        return self.exist_in(0, self.frames)

    def exist_in(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """For each of some frames whether anything was ever stored there; others are zeros without room."""
        found = np.zeros(count, dtype=np.bool_)
        at, end = first << PAGE_SHIFT, first + count << PAGE_SHIFT
        while at < end:
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing but a hole from here on
                    raise
                break
            at = os.lseek(self.fd, start, os.SEEK_HOLE)
            found[max((start >> PAGE_SHIFT) - first, 0) : max((at + 4095 >> PAGE_SHIFT) - first, 0)] = True
        return found

    def view_at(self, address: int, first: int, count: int, *, shared: bool = False) -> None:
        """Map frames of the file at the host's `address` of frame 0, over whatever is there."""
        where, length = address + (first << PAGE_SHIFT), count << PAGE_SHIFT
        kind = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | _MAP_FIXED
        got = _mmap(where, length, mmap.PROT_READ | mmap.PROT_WRITE, kind, self.fd, first << PAGE_SHIFT)
        if got != where:
            reason = os.strerror(ctypes.get_errno())
            raise EnvironmentProblem(f"the host refuses a view of a snapshot's memory ({reason})")


@frozen
class Image:
    """The contents of a RAM at one moment. Nothing changes it; the layers live as long as it does."""

    layers: tuple[Layer, ...]
    of_frame: npt.NDArray[np.int32]
    """For each frame the index of the layer that holds its contents."""

    @property
    def frames(self) -> int:
        """How many page frames."""
        return int(self.of_frame.size)

    def existing(self) -> MfnArray:
        """Frames that may hold something else than zeros, ascending."""
        found = np.zeros(self.frames, dtype=np.bool_)
        for number, layer in enumerate(self.layers):
            mine = self.of_frame == number
            found[mine] = layer.exist[mine]
        return np.flatnonzero(found)

    def read(self, first: int, count: int) -> Iterator[bytes]:
        """The contents of `count` frames from `first` on, in pieces."""
        for start, length, number in runs_of_equal(self.of_frame[first : first + count]):
            yield os.pread(self.layers[number].fd, length << PAGE_SHIFT, first + start << PAGE_SHIFT)


def private_copies(address: int, frames: int) -> MfnArray:
    """Frames of a private view of files, mapped at the host's `address`, that were written since.

    EnvironmentProblem where the host does not tell.
    """
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.pread(fd, frames * 8, (address >> PAGE_SHIFT) * 8)
        finally:
            os.close(fd)
    except OSError as error:
        raise EnvironmentProblem(
            f"/proc/self/pagemap cannot be read ({error.strerror}), and snapshots of memory need it"
        ) from error
    entries = np.frombuffer(raw, dtype=np.uint64)
    if entries.size != frames:
        raise EnvironmentProblem("/proc/self/pagemap is shorter than memory, and snapshots need it")
    return np.flatnonzero(((entries & _PRESENT_OR_SWAPPED) != 0) & ((entries & _OF_A_FILE) == 0))
