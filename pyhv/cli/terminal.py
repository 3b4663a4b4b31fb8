# SPDX-License-Identifier: GPL-2.0-only
"""The person's terminal: raw mode that always ends, the key that leaves, and signals.

In raw mode every key goes to the guest, Ctrl-C and Ctrl-Z included; Ctrl-] alone is ours. Output processing
stays on, because small kernels print "\\n" and mean a new line. The modes are those of POSIX termios.

Signals are turned into readable bytes: the machine polls them like any input, and the run ends in an orderly
way between two turns of a guest. If that takes too long, or a second signal comes, the process ends at once.
"""

import contextlib
import os
import signal
import termios
from types import FrameType, TracebackType
from typing import Any, Final, Self

from pyhv.cli.consoles import CHUNK, ConsoleInput

LEAVE: Final = b"\x1d"
"""Ctrl-]."""
MAX_TYPED: Final = 1 << 16
"""Keys remembered, in bytes, for a guest that does not read; more are dropped, as a terminal would."""

GRACE_SECONDS: Final = 2.0
"""How long an orderly end may take after a signal."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_usable_terminal(fd: int) -> bool:
    """Whether `fd` is a terminal that this process may change: it is in the foreground."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


class RawTerminal:
    """A context in which `fd` is in raw mode. `restore` may be called at any time and any number of times."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
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
            with contextlib.suppress(termios.error):  # it hung up: there is nothing left to restore
                termios.tcsetattr(self._fd, termios.TCSANOW, saved)


def raw_mode(mode: list[Any]) -> list[Any]:
    """`mode`, as tcgetattr returns it, with every key passed on at once and unchanged."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = mode
    keys = list(cc)
    keys[termios.VMIN], keys[termios.VTIME] = 1, 0
    iflag &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
        | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
    )  # fmt: skip
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    return [iflag, oflag | termios.OPOST, cflag, lflag, ispeed, ospeed, keys]


class Keyboard(ConsoleInput):
    """Input from a terminal in raw mode: Ctrl-] and hanging up call `ended`, all else is the guest's.

    Unlike a pipe it is read even if the guest does not take what was typed, or nobody could leave.
    """

    def fileno(self) -> int:
        """The terminal, always."""
        return self._fd

    def pump(self) -> bool:
        """Read what was typed; False once the person has left or the terminal has hung up."""
        try:
            data = os.read(self._fd, CHUNK)
        except OSError:
            data = b""
        keys, left, _ = data.partition(LEAVE)
        self.waiting = (self.waiting + keys)[:MAX_TYPED]
        self.retry()
        if left or not data:
            self._ended()
            return False
        return True


class Signals:
    """A context that turns SIGINT, SIGTERM and SIGHUP into input (`loop.InputSource`).

    `received` is the first signal's number, 0 if there was none. If the run has not ended GRACE_SECONDS
    later, or if another signal comes, `terminal` is put back and the process ends with 128 + the number.
    """

    def __init__(self, terminal: RawTerminal | None) -> None:
        self.received = 0
        self._terminal = terminal
        self._retired = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                self._previous[number] = signal.signal(number, self._handle)
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._handle)
        self._previous[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._continued)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Readable once a signal has come."""
        return self._reader

    def pump(self) -> bool:
        """Take the byte; `received` says the rest. False if signals are no longer to be waited for."""
        os.read(self._reader, 1)
        return not self._retired

    def retire(self) -> None:
        """Stop being an input: the only other one has ended, and a machine that waits for input would
        never find out that it waits in vain. Signals are still noticed between two turns of a guest."""
        self._retired = True
        os.write(self._writer, b"!")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            if self._terminal is not None:
                self._terminal.restore()
            os._exit(128 + self.received)
        if number == signal.SIGALRM:
            return  # somebody else's alarm
        self.received = number
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        os.write(self._writer, b"!")

    def _continued(self, _number: int, _frame: FrameType | None) -> None:
        if self._terminal is not None:
            self._terminal.enter_raw()
