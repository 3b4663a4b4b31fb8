# SPDX-License-Identifier: GPL-2.0-only
"""What pyhv itself says: on standard error, so that standard output is the guests' alone."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

VERBOSE: Final = "pyhv.verbose"
"""Key in click's `Context.meta`: more messages, and tracebacks."""

Command = TypeVar("Command", bound=Callable[..., Any])


def say(text: str) -> None:
    """One message, in one or more lines. Names in it may come from files that anybody has made."""
    shown = printable(text, but="\n\t")
    click.echo(f"pyhv: {shown}", err=True)


def printable(text: str, but: str = "") -> str:
    """Text that cannot steer a terminal, but for characters that may."""
    return "".join(c if c.isprintable() or c in but else f"\\x{ord(c):02x}" for c in text)


def verbose_option(command: Command) -> Command:
    """Give a command `-v`, which is noted in the context and not passed on."""

    def note(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.meta[VERBOSE] = True

    return click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=note,
        help="Say more, and show a traceback for an internal error.",
    )(command)  # fmt: skip


def is_verbose() -> bool:
    """Whether `-v` was given."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(VERBOSE))


class PlainProgress:
    """Progress without a terminal: a line for each stage (`pyhv.images.progress.Progress`)."""

    def step(self, text: str) -> None:
        """Say it."""
        say(text)

    def transferred(self, done: int, total: int) -> None:
        """Bytes are not told."""

    def close(self) -> None:
        """Nothing to end."""


class BarProgress:
    """Progress at a terminal: a bar for what is downloaded (`pyhv.images.progress.Progress`)."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self._progress = Progress(
            TextColumn("pyhv:"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None

    def step(self, text: str) -> None:
        """Take the bar away, if there is one, and say what comes next."""
        self.close()
        say(text)

    def transferred(self, done: int, total: int) -> None:
        """Move the bar; it appears with the first bytes."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=total or None)
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


def progress() -> PlainProgress | BarProgress:
    """The kind of progress that suits standard error. It is closed when the command ends, however it ends."""
    chosen = BarProgress() if sys.stderr.isatty() else PlainProgress()
    context = click.get_current_context(silent=True)
    if context is not None:
        context.call_on_close(chosen.close)
    return chosen
