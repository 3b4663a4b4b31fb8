# SPDX-License-Identifier: GPL-2.0-only
"""What the emulator needs of its host before it is even loaded, and what is asked of the host's C library."""

import ctypes
import mmap
from typing import Final

from pyhv.cpu.once import once

_M_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 4 << 20


def executable_memory_refused() -> str:
    """Why this host gives no memory that is writable and executable, in one sentence; empty if it does.

    The emulator translates into such memory, and ends the process where it gets none.
    """
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError as error:
        return (
            f"This host refuses memory that is writable and executable ({error}); allow it to this process"
            " (SELinux: execmem, systemd: MemoryDenyWriteExecute=no)."
        )
    return ""


@once
def give_back_large_blocks() -> bool:
    """Let the C library take each block of 4 MiB and more from the host, and give it back when it is freed.

    glibc (`mallopt(3)`) does so until the first of them is freed; from then on such blocks lie on its heap,
    where what is allocated behind holds them: 60 MiB for a Linux kernel that was read and forgotten.
    False where the C library has no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, _LARGE) == 1
