# SPDX-License-Identifier: GPL-2.0-only
"""Every way in which pyhv says no, and the exit code that a shell sees for it.

Two audiences, two families. `XenError` speaks to the guest: it carries an errno and becomes the negative
return value of a hypercall. `PyhvError` speaks to the person: one sentence with what is wrong, where, and
what to do; the command line prints it and exits with `exit_code`. `GuestCrash` is neither: it ends one
domain, and the machine goes on.
"""

import enum


class ExitCode(enum.IntEnum):
    """What `pyhv` returns to the shell."""

    OK = 0
    USAGE = 2
    SKIP = 3
    ENVIRONMENT = 4
    FAILURE = 5
    CRASH = 6
    DEADLOCK = 7
    BUG = 8
    ENDED = 9
    """The guest has ended, but not by powering off: a reboot, a suspension, a soft reset."""
    DIVERGED = 10
    """A replay is not the run that was recorded."""
    TIMEOUT = 124
    INTERRUPTED = 130


class PyhvError(Exception):
    """A mistake or a lack on the user's side, told in one sentence."""

    exit_code = ExitCode.ENVIRONMENT


class ImageError(PyhvError):
    """A kernel image or ramdisk that cannot be booted; the message names the file and the cause."""


class ConfigError(PyhvError):
    """An impossible configuration: memory size, vCPU count, name, weight."""


class EngineError(PyhvError):
    """The emulator on this host does not behave as pyhv needs; the message says what to install."""


class StateError(PyhvError):
    """Saved state that no machine of this pyhv can have had; the message says what of it."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"Saved state is not valid: {where or 'its root'} {why}.")
        self.where = where
        """The field, from the outermost one on, with dots between; empty: all of it."""
        self.why = why


class VolumeError(PyhvError):
    """What is on a disk is damaged, or is not there; the message names the disk and says what."""


class EnvironmentProblem(PyhvError):
    """Something outside is missing: a tool, a directory, the network."""


class SnapshotError(PyhvError):
    """A snapshot that cannot be taken, written, read or put back; the message says which and why."""


class ReplayError(PyhvError):
    """A recording that cannot be made, read or replayed; the message says which and why."""


class Diverged(ReplayError):
    """A run that is not the recorded one; the message says where, and what differs first."""

    exit_code = ExitCode.DIVERGED


class XenError(Exception):
    """A hypercall's refusal.

    `errno` is positive, from `pyhv.abi.errno.Errno`; the guest sees its negative. `why` explains which
    entry, frame or rule, for the trace and for crash reports; the guest never sees it.
    """

    def __init__(self, errno: int, why: str = "") -> None:
        super().__init__(errno, why)
        self.errno = errno
        self.why = why

    def __str__(self) -> str:
        return f"errno {self.errno}: {self.why}" if self.why else f"errno {self.errno}"


class GuestCrash(Exception):
    """The domain did something after which Xen would kill it. `why` is one sentence for its report."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
