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
from typing import Any, Protocol

from pyhv.errors import ConfigError, EnvironmentProblem

MAX_PARTIAL = 4096
"""Longest line that is held back to be printed whole, in bytes."""
TAIL_BYTES = 4096
"""How much of a console's end is remembered for a crash report."""
CHUNK = 4096
"""How much input is read at a time, in bytes."""

_CONTROL = bytes(set(range(32)) - set(b"\t\x1b")) + b"\x7f"
_COLOURS = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91)


class OutputClosed(Exception):
    """Whoever read the output has gone away."""


class Output(Protocol):
    """A place for bytes."""

    def output(self, data: bytes) -> None:
        """Take more bytes; raises OutputClosed if nobody is left to read them."""


class Stream:
    """A file descriptor, or for want of one a binary stream (`stream` in tests). Nothing stays buffered."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name = name
        try:
            self._fd: int | None = stream.fileno()
        except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
            self._fd = None

    def output(self, data: bytes) -> None:
        """Write all of `data` now."""
        try:
            if self._fd is None:
                self._stream.write(data)
                self._stream.flush()
            else:
                write_all(self._fd, data)
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

    def output(self, data: bytes) -> None:
        """Print the lines that are complete, and keep the rest."""
        *complete, rest = data.split(b"\n")
        lines = []
        for part in complete:
            lines.append(self._render(bytes(self._partial) + part))
            self._partial.clear()
        self._partial += rest
        while len(self._partial) > MAX_PARTIAL:
            lines.append(self._render(bytes(self._partial[:MAX_PARTIAL])))
            del self._partial[:MAX_PARTIAL]
        if lines:
            self._target.output(b"".join(lines))

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


class Fan:
    """One guest's console: everything goes to each of `outputs`, in order."""

    def __init__(self, *outputs: Output) -> None:
        self._outputs = outputs

    def output(self, data: bytes) -> None:
        """Pass `data` on."""
        for output in self._outputs:
            output.output(data)


def open_console(choice: str, stdout: Any) -> Output:
    """The target of `--console stdio|file:PATH|none`. Raises ConfigError or EnvironmentProblem."""
    if choice == "stdio":
        return Stream(stdout, "standard output")
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


class Input:
    """Bytes from a descriptor to a guest, at the guest's pace (`pyhv.machine.InputSource`).

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
