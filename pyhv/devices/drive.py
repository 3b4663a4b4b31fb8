# SPDX-License-Identifier: GPL-2.0-only
"""A disk that is in a guest's drive, and moments of a machine that remember what was on it.

A guest may be gone, and a snapshot bring it back: so a disk stays open as long as a device or a moment has
it. Whoever has it says so with `hold`, and with `let_go` when that is over.
"""

import threading
import weakref
from typing import Self

from pyhv.storage.disk import Disk
from pyhv.storage.history import Remembering


class Drive:
    """A disk with its users."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk if isinstance(disk, Remembering) else Remembering(disk)
        self._users = 1
        self._lock = threading.RLock()
        """Whoever collects garbage forgets moments, also in the middle of `hold` and `let_go`."""

    def hold(self) -> Self:
        """One user more."""
        with self._lock:
            assert self._users, "the disk has been closed"
            self._users += 1
        return self

    def let_go(self) -> None:
        """One user less; the last one closes the disk."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.disk.close()

    def moment(self) -> "DriveMoment":
        """What is on it now; what was asked for must be done."""
        return DriveMoment(self, self.disk.moment())

    def forget(self, number: int) -> None:
        """Nobody needs what was on it at a moment; one user less."""
        self.disk.drop(number)
        self.let_go()


class DriveMoment:
    """What was on a drive at some time."""

    def __init__(self, drive: Drive, number: int) -> None:
        self.drive = drive.hold()
        self.number = number
        self.identity = drive.disk.identity()
        weakref.finalize(self, drive.forget, number)

    def put_back(self) -> Drive:
        """Have that on it again; one user more. DiskError: it is not remembered."""
        self.drive.disk.revert(self.number)
        return self.drive.hold()

    def view(self) -> Drive:
        """A drive of its own with that on it; what is written there is nobody else's. DiskError."""
        return Drive(self.drive.disk.view(self.number))
