# SPDX-License-Identifier: GPL-2.0-only
"""The options that `boot` and `restore` have in common: how a machine is run, and what is kept of it."""

import functools
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pyhv.cli.messages import is_verbose
from pyhv.frozen import frozen

if TYPE_CHECKING:
    from pyhv.cli.saving import SaveOptions
    from pyhv.cli.session import RunOptions

NANOSECONDS: Final = 1_000_000_000


@frozen
class RunWords:
    """What was said of a run, as it was said; times in seconds."""

    timeout: float | None
    console: str
    digest: Path | None
    trace: Path | None
    engine_tuning: bool
    stats: bool
    record: Path | None
    save: Path | None
    save_when: str | None
    save_after: float | None
    gdb: str | None

    def options(self, *, virtual_time: bool) -> "RunOptions":
        """What it means. ConfigError: the pattern is none."""
        from pyhv.cli.session import RunOptions

        return RunOptions(
            virtual_time=virtual_time,
            tuned=self.engine_tuning,
            timeout_ns=_nanoseconds(self.timeout),
            console=self.console,
            stats=self.stats,
            digest=self.digest,
            trace=self.trace,
            verbose=is_verbose(),
            record=self.record,
            save=self._save_options(),
            gdb=self.gdb,
        )

    def _save_options(self) -> "SaveOptions | None":
        from pyhv.api.words import expression
        from pyhv.cli.saving import SaveOptions

        if self.save is None:
            return None
        pattern = None if self.save_when is None else expression(self.save_when)
        return SaveOptions(self.save, pattern, _nanoseconds(self.save_after))


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * NANOSECONDS)


def _console(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """`stdio`, `none`, or `file:PATH`."""
    if value not in ("stdio", "none") and not re.fullmatch(r"file:.+", value):
        raise click.BadParameter(f"{value!r} is neither stdio, nor none, nor file:PATH.")
    return value


def file() -> click.Path:
    """An option that names a file."""
    return click.Path(dir_okay=False, path_type=Path)


_SECONDS: Final = click.FloatRange(0, min_open=True)
_WATCHING: Final = (
    click.option(
        "--console",
        callback=_console,
        default="stdio",
        metavar="WHERE",
        help="stdio (default), none or file:PATH.",
    ),
    click.option(
        "--digest", type=file(), metavar="FILE", help="Write the hash chain over all exits (virtual time)."
    ),
    click.option("--trace", type=file(), metavar="FILE", help="Write every exit as a line of JSON."),
    click.option(
        "--engine-tuning/--no-engine-tuning",
        default=True,
        help="Change the emulator's hot paths where that is proven to be right, or leave it as it is.",
        show_default=True,
    ),
    click.option("--stats", is_flag=True, help="End with a table of times and counts."),
)
"""What becomes visible of a run, and on which engine it is."""
_OPTIONS: Final = (
    click.option(
        "--timeout", type=_SECONDS, metavar="SECONDS", help="End the run after that much machine time."
    ),
    *_WATCHING,
    click.option(
        "--record",
        type=file(),
        metavar="FILE",
        help="Write down there what `pyhv replay` needs for the same run.",
    ),
    click.option(
        "--gdb",
        is_flag=False,
        flag_value="",
        metavar="[ADDRESS]",
        help="Wait for gdb at HOST:PORT or unix:PATH (default: loopback, a free port).",
    ),
    click.option("--save", type=file(), metavar="FILE", help="Save the machine there instead of going on."),
    click.option(
        "--save-when", metavar="PATTERN", help="Save when a guest prints that (regular expression)."
    ),
    click.option(
        "--save-after",
        type=_SECONDS,
        metavar="SECONDS",
        help="Save after that much machine time. Without either: when you leave.",
    ),
)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; they come as one argument, `how`."""

    @functools.wraps(command)
    def collected(*args: Any, **words: Any) -> None:
        how = RunWords(**{field.name: words.pop(field.name) for field in fields(RunWords)})
        if how.save is None and (how.save_when is not None or how.save_after is not None):
            raise click.UsageError("--save-when and --save-after need --save: where to.")
        command(*args, how=how, **words)

    return _with(_OPTIONS, collected)


def watching_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that only look at a run, each as an argument."""
    return _with(_WATCHING, command)


def _with(options: tuple[Callable[..., Any], ...], command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(options):
        command = option(command)
    return command
