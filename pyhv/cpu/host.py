# SPDX-License-Identifier: GPL-2.0-only
"""What the emulator needs of its host before it is even loaded."""

import mmap


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
