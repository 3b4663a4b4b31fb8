# SPDX-License-Identifier: GPL-2.0-only
"""The person's terminal: raw mode that always ends, the key that leaves, and signals.

In raw mode every key goes to the guest, Ctrl-C and Ctrl-Z included; Ctrl-] alone is ours. Output processing
stays on, because small kernels print "\\n" and mean a new line. The modes are those of POSIX termios.

Signals are turned into readable bytes: the machine polls them like any input, and the run ends in an orderly
way between two exits of a guest. Only if that does not happen, the second signal ends the process at once.
"""

import os
import signal
import sys
import termios
from collections.abc import Callable
from types import FrameType, TracebackType

from pyhv.cli.consoles import Input

LEAVE = b"\x1d"
"""Ctrl-]."""
MAX_TYPED = 1 << 16
"""Keys remembered, in bytes, for a guest that does not read; more are dropped, as a terminal would."""

_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def usable_terminal(fd: int) -> bool:
    """Whether `fd` is a terminal that this process may change: it is in the foreground."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


class RawTerminal:
    """A context in which `fd` is in raw mode. `restore` may be called at any time and any number of times."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> "RawTerminal":
        self._saved = termios.tcgetattr(self._fd)
        self.enter_raw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def enter_raw(self) -> None:
        """Raw mode: now, and again after the process was stopped and continued."""
        if self._saved is not None:
            termios.tcsetattr(self._fd, termios.TCSANOW, raw_mode(self._saved))

    def restore(self) -> None:
        """Put the terminal back as it was found."""
        saved, self._saved = self._saved, None
        if saved is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSANOW, saved)
            except termios.error:
                pass  # the terminal hung up: there is nothing left to restore


def raw_mode(mode: list[int | list[bytes | int]]) -> list[int | list[bytes | int]]:
    """`mode`, as tcgetattr returns it, with every key passed on at once and unchanged."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = mode
    assert isinstance(iflag, int) and isinstance(oflag, int)
    assert isinstance(cflag, int) and isinstance(lflag, int) and isinstance(cc, list)
    keys = list(cc)
    keys[termios.VMIN], keys[termios.VTIME] = 1, 0
    iflag &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
        | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
    )  # fmt: skip
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    return [iflag, oflag | termios.OPOST, cflag, lflag, ispeed, ospeed, keys]


class Keyboard(Input):
    """Input from a terminal in raw mode: Ctrl-] calls `leave`, all else is the guest's.

    Unlike a pipe it is read even if the guest does not take what was typed, or nobody could leave.
    """

    def __init__(self, fd: int, feed: Callable[[bytes], int], leave: Callable[[], None]) -> None:
        super().__init__(fd, feed)
        self._leave = leave

    def fileno(self) -> int:
        """The terminal, always."""
        return self._fd

    def pump(self) -> bool:
        """Read what was typed; False once the person has left or the terminal has hung up."""
        try:
            data = os.read(self._fd, 4096)
        except OSError:
            data = b""
        keys, left, _ = data.partition(LEAVE)
        if left or not data:
            self._leave()
        self.waiting = (self.waiting + keys)[:MAX_TYPED]
        self.retry()
        return bool(data) and not left


class Signals:
    """A context that turns SIGINT, SIGTERM and SIGHUP into input (`pyhv.machine.InputSource`).

    `received` is the first signal's number, 0 if there was none. The second signal calls `emergency`, which
    puts the terminal back, and ends the process with 128 + its number.
    """

    def __init__(self, emergency: Callable[[], None], resumed: Callable[[], None]) -> None:
        self.received = 0
        self._emergency = emergency
        self._resumed = resumed
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Signals":
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                self._previous[number] = signal.signal(number, self._handle)
        self._previous[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._continued)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Readable once a signal has come."""
        return self._reader

    def pump(self) -> bool:
        """Take the byte; `received` already says the rest."""
        os.read(self._reader, 1)
        return True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            self._emergency()
            sys.stderr.flush()
            os._exit(128 + number)
        self.received = number
        os.write(self._writer, b"!")

    def _continued(self, _number: int, _frame: FrameType | None) -> None:
        self._resumed()
