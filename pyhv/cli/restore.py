# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv restore`: a machine goes on from a snapshot's file, alone or in several copies.

Copies are processes of their own that share the snapshot's memory as long as they do not write to it. Each is
the whole machine; they know nothing of each other.
"""

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

import pyhv
from pyhv.cli.messages import say, verbose_option
from pyhv.cli.options import RunWords, run_options
from pyhv.cli.verdict import SEVERITY, worst
from pyhv.errors import ExitCode, PyhvError
from pyhv.frozen import frozen

if TYPE_CHECKING:
    from pyhv.cli.session import RunOptions, Session

EPILOG: Final = """\b
Examples:
  pyhv boot debian --save debian.snap --save-when '/ # '
  pyhv restore debian.snap
  pyhv restore debian.snap --count 3 --timeout 10
  pyhv inspect debian.snap

Exit codes are those of `pyhv boot`; of several copies the gravest decides.
"""


@click.command(epilog=EPILOG)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--count", type=click.IntRange(1, 1000), default=1, metavar="N", help="Go on in N copies.")
@click.option("--unique", is_flag=True, help="Give each guest of each copy a UUID of its own.")
@run_options
@verbose_option
def restore(
    file: Path,
    count: int,
    unique: bool,
    how: RunWords,
) -> None:
    """Go on from a snapshot that `--save` or `Snapshot.save` has written, with all its guests.

    In virtual time the guests do exactly what they would have done. In real time their clocks go on from
    where they were. Consoles are as with `pyhv boot`.
    """
    if count > 1 and any(path is not None for path in (how.save, how.digest, how.trace, how.record)):
        raise click.UsageError("--save, --digest, --trace and --record are for one copy, not for several.")
    snapshot = pyhv.Snapshot.load(file)
    virtual_time = snapshot.about.virtual_time
    if how.digest is not None and not virtual_time:
        raise click.UsageError(f"--digest needs virtual time, and {file} was saved in real time.")
    options = how.options(virtual_time=virtual_time)
    context = click.get_current_context()
    copies = [_Copy(snapshot, options, number if count > 1 else None, unique) for number in range(count)]
    context.exit(copies[0].run() if count == 1 else _run_all(copies))


@frozen
class _Copy:
    """One machine to be made of a snapshot; `number` is its own among several."""

    snapshot: "pyhv.Snapshot"
    options: "RunOptions"
    number: int | None
    unique: bool

    def run(self) -> int:
        """Go on, and return the exit code. SnapshotError names the file."""
        from pyhv.cli import session

        snapshot, options, number = self.snapshot, self.options, self.number
        several = len(snapshot.about.guests) > 1 or number is not None

        def make() -> pyhv.Machine:
            machine = pyhv.Machine.of(snapshot, tuned=options.tuned, measure=options.stats)
            with ExitStack() as undo:
                undo.callback(machine.close)
                if number is None:
                    machine.wires.open_all()
                elif machine.wires.missing:
                    say("what its networks lead to outside is for one machine: none of several copies has it")
                if options.record is not None:
                    machine.record(options.record, base=snapshot)
                undo.pop_all()
            return machine

        def populate(run: "Session") -> None:
            for guest in run.machine.guests:
                shown = guest.name if number is None else f"{guest.name}-{number + 1}"
                run.take_in(guest, shown, several=several)
                if self.unique:
                    guest.change_uuid(str(uuid.uuid5(uuid.UUID(guest.uuid), f"copy {number or 0}")))

        return session.conduct(options, make, populate)


def _run_all(copies: list[_Copy]) -> int:
    """A process for each copy; the gravest exit code of theirs."""
    sys.stdout.flush()
    children = [_fork(copy) for copy in copies]
    codes = []
    with signal_ignored():
        for child in children:
            _, status = os.waitpid(child, 0)
            codes.append(os.waitstatus_to_exitcode(status))
    stopped = [code for code in codes if code not in SEVERITY]
    return max(stopped) if stopped else worst(ExitCode(code) for code in codes)


def _fork(copy: _Copy) -> int:
    """Begin a copy in a process of its own, without a keyboard; its process number."""
    child = os.fork()
    if child:
        return child
    code: int = ExitCode.BUG
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = copy.run()
    except PyhvError as error:
        say(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    finally:
        sys.stdout.flush()
        os._exit(code)


@contextmanager
def signal_ignored() -> Iterator[None]:
    """Ctrl-C is for the copies, which get it too."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
