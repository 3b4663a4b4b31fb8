# SPDX-License-Identifier: GPL-2.0-only
"""Where console bytes go on the way out, and where they come from on the way in.

One guest: its bytes and nothing else, as they come. Several guests: whole lines, each with its guest's name
before it. Input from a pipe or a file waits here until the guest's console ring has room for it.

The guest's end (the ring of Xen's public header io/console.h) is `devices/console.py`'s; terminals and
their modes are `terminal.py`'s.
"""

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from pyhv.errors import ConfigError, EnvironmentProblem

MAX_PARTIAL: Final = 4096
"""Longest line that is held back to be printed whole, in bytes."""
TAIL_BYTES: Final = 4096
"""How much of a console's end is remembered for a crash report."""
_TERMINAL_TAKES: Final = 256
"""Bytes that a terminal takes at once when it is ready."""
CHUNK: Final = 4096
"""How much input is read at a time, in bytes."""

_CONTROL: Final = bytes(set(range(32)) - set(b"\t\x1b")) + b"\x7f"
_COLOURS: Final = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91)


class OutputClosed(Exception):
    """Whoever read the output has gone away."""


class Output(Protocol):
    """A place for bytes."""

    def output(self, data: bytes) -> bool | None:
        """Take more bytes, or none of them and return False: they are to be offered again later.

        Raises OutputClosed if nobody is left to read them.
        """


class Stream:
    """A file descriptor, or for want of one a binary stream (`stream` in tests). Nothing stays buffered."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name = name
        try:
            self.fd: int | None = stream.fileno()
        except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
            self.fd = None

    def output(self, data: bytes) -> None:
        """Write all of `data` now."""
        try:
            if self.fd is None:
                self._stream.write(data)
                self._stream.flush()
            else:
                write_all(self.fd, data)
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as cause:
            problem = f"{self._name}: cannot be written ({cause.strerror})"
            raise EnvironmentProblem(problem) from cause


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, also to a descriptor that somebody else made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


class Outlet:
    """Standard output that a guest's console goes to, at its reader's pace.

    What comes is written as far as the reader takes it. The rest waits here, and nothing more is taken before
    it has gone. A reader that has gone takes everything: `closed` says so, and the run is not worth going on.
    With `patient`, writing waits for the reader.
    """

    def __init__(self, stream: Any, name: str, *, patient: bool) -> None:
        self._stream = Stream(stream, name)
        self._patient = patient
        fd = self._stream.fd
        self._at_once = _TERMINAL_TAKES if fd is not None and os.isatty(fd) else select.PIPE_BUF
        """What the descriptor takes without waiting when it is ready for writing."""
        self._waiting = b""
        self.closed = False

    @property
    def waits_for(self) -> int | None:
        """The descriptor that must become writable before more can go out; None: nothing waits."""
        return self._stream.fd if self._waiting else None

    def output(self, data: bytes) -> bool:
        """Take `data` unless something waits."""
        if not self.go_on():
            return False
        self._waiting = b"" if self.closed else data
        self.go_on()
        return True

    def go_on(self) -> bool:
        """Write what the reader takes; True if nothing waits any more."""
        fd = self._stream.fd
        if self._patient or fd is None:
            self.finish()
            return True
        while self._waiting:
            if not select.select([], [fd], [], 0)[1]:
                return False
            self._write(self._waiting[: self._at_once])
        return True

    def finish(self) -> None:
        """Write all that waits, as long as it takes."""
        if self._waiting:
            self._write(self._waiting)

    def _write(self, data: bytes) -> None:
        try:
            self._stream.output(data)
        except OutputClosed:
            self.closed, self._waiting = True, b""
        else:
            self._waiting = self._waiting[len(data) :]


class Nowhere:
    """`--console none`."""

    def output(self, data: bytes) -> None:
        """Forget `data`."""


class Prefixed:
    """Whole lines with `name| ` before each, so that guests that print at once stay readable.

    Control characters other than tab and escape are dropped: a line must stay on its line. A line longer
    than MAX_PARTIAL is broken, so a guest cannot make pyhv remember more.
    """

    def __init__(self, target: Output, name: str, colour: int | None = None) -> None:
        self._target = target
        prefix = f"{name}| "
        if colour is not None:
            prefix = f"\x1b[{_COLOURS[colour % len(_COLOURS)]}m{prefix}\x1b[0m"
        self._prefix = prefix.encode()
        self._partial = bytearray()

    def output(self, data: bytes) -> bool | None:
        """Print the lines that are complete, and keep the rest. False: nothing was taken."""
        *complete, rest = (bytes(self._partial) + data).split(b"\n")
        lines = [self._render(part) for part in complete]
        while len(rest) > MAX_PARTIAL:
            lines.append(self._render(rest[:MAX_PARTIAL]))
            rest = rest[MAX_PARTIAL:]
        if lines and self._target.output(b"".join(lines)) is False:
            return False
        self._partial = bytearray(rest)
        return None

    def finish(self) -> None:
        """Print what is left although its line never ended."""
        if self._partial:
            self._target.output(self._render(bytes(self._partial)))
            self._partial.clear()

    def _render(self, line: bytes) -> bytes:
        return self._prefix + line.translate(None, _CONTROL) + b"\n"


class Tail:
    """The last bytes of a console."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def output(self, data: bytes) -> None:
        """Remember the end of what came so far."""
        self._bytes += data[-TAIL_BYTES:]
        del self._bytes[:-TAIL_BYTES]

    def lines(self, count: int) -> list[bytes]:
        """Up to `count` last lines that are not empty."""
        found = [line.rstrip(b"\r") for line in self._bytes.split(b"\n")]
        return [bytes(line) for line in found if line][-count:]


class Tee:
    """One guest's console: what `target` takes goes to each of `others` too."""

    def __init__(self, target: Output, *others: Output) -> None:
        self._target = target
        self._others = others

    def output(self, data: bytes) -> bool | None:
        """Pass `data` on, unless the target takes nothing: False then."""
        if self._target.output(data) is False:
            return False
        for output in self._others:
            output.output(data)
        return None


def open_console(choice: str, stdout: Any, *, patient: bool = False) -> Output:
    """The target of `--console stdio|file:PATH|none`. Raises ConfigError or EnvironmentProblem."""
    if choice == "stdio":
        return Outlet(stdout, "standard output", patient=patient)
    if choice == "none":
        return Nowhere()
    kind, _, path = choice.partition(":")
    if kind != "file" or not path:
        raise ConfigError(f"--console {choice}: must be stdio, none, or file:PATH")
    return Stream(open_output(Path(path), "the console's output"), path)


def open_output(path: Path, what: str) -> Any:
    """Create `path` for writing bytes, unbuffered; `what` says in the message what it would have held."""
    try:
        return path.open("wb", buffering=0)
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise EnvironmentProblem(f"{path}: cannot be created for {what} ({reason})") from cause


class ConsoleInput:
    """Bytes from a descriptor to a guest, at the guest's pace (`loop.InputSource`).

    `feed` gives bytes to the console ring and returns how many it took. What it did not take stays in
    `waiting`; `retry` offers it again. While bytes wait, nothing more is read, so that a pipe's writer is
    held back as it should be; `fileno` then names a descriptor that is never readable, so that polling it
    is not a busy loop. `ended` is called when nothing more will come.
    """

    def __init__(self, fd: int, feed: Callable[[bytes], int], ended: Callable[[], None]) -> None:
        self._fd = fd
        self._feed = feed
        self._ended = ended
        self.waiting = b""
        self._silent, self._silent_writer = os.pipe()

    def close(self) -> None:
        """Give back the descriptors made here, not the one that was given."""
        os.close(self._silent)
        os.close(self._silent_writer)

    def fileno(self) -> int:
        """What to poll now; ask again each time."""
        return self._silent if self.waiting else self._fd

    def pump(self) -> bool:
        """Read once and offer it to the guest; False at the end of the input, or if it has broken off."""
        if self.retry():
            try:
                data = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return True
            except OSError:  # a terminal that hung up
                data = b""
            if not data:
                self._ended()
                return False
            self.waiting = data
            self.retry()
        return True

    def retry(self) -> bool:
        """Offer again what waits; whether nothing is left."""
        if self.waiting:
            self.waiting = self.waiting[self._feed(self.waiting) :]
        return not self.waiting
