# SPDX-License-Identifier: GPL-2.0-only
"""Frames as they went by, in a file that Wireshark, tshark and tcpdump open: pcap, with nanoseconds.

    24 bytes: magic a1b23c4d, version 2.4, snap length, Ethernet
    for each frame 16 bytes: seconds, nanoseconds of machine time, bytes here, bytes in all; then its bytes

Each frame is handed to the host as soon as it goes by and in one piece, so that whoever is killed leaves
a file that can be read. Frames are written as they are on their way (`frame.py`): large ones in one piece,
and checksums that are still to be filled in as they stand.
"""

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyhv.errors import EnvironmentProblem
from pyhv.net.frame import Frame

_MAGIC: Final = 0xA1B23C4D
_ETHERNET: Final = 1
_SNAP_LENGTH: Final = 262144
_RECORD: Final = struct.Struct("<4I")
_SECOND: Final = 10**9


class Capture:
    """One file that is being written. A host that takes no more ends it: `problem` says so."""

    def __init__(self, path: Path, now: Callable[[], int]) -> None:
        """Begin the file. `now` is the machine's time in ns. EnvironmentProblem: it cannot be written."""
        self.path = path
        self.problem = ""
        """Why the file ends before the run; empty: it does not."""
        self.frames = 0
        """How many are in it."""
        self._now = now
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as cause:
            reason = cause.strerror or cause
            raise EnvironmentProblem(f"{path}: cannot be created for the capture ({reason})") from cause
        self._size = 0
        self._put(struct.pack("<IHHiIII", _MAGIC, 2, 4, 0, 0, _SNAP_LENGTH, _ETHERNET))
        if self.problem:
            raise EnvironmentProblem(self.problem)

    def frame(self, frame: Frame) -> None:
        """A frame goes by."""
        if self._file < 0:
            return
        data, (seconds, nanoseconds) = frame.data, divmod(self._now(), _SECOND)
        self._put(_RECORD.pack(seconds & 0xFFFFFFFF, nanoseconds, len(data), len(data)) + data)
        self.frames += not self.problem

    def close(self) -> None:
        """The file is whole."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _put(self, record: bytes) -> None:
        """Hand over a record whole; of one that the host takes in part nothing is left behind."""
        try:
            if os.write(self._file, record) == len(record):
                self._size += len(record)
                return
            reason = "no space is left"
        except OSError as cause:
            reason = cause.strerror or str(cause)
        self.problem = f"{self.path}: the capture ends after {self.frames} frames ({reason})"
        if stat.S_ISREG(os.fstat(self._file).st_mode):
            os.ftruncate(self._file, self._size)
        self.close()
