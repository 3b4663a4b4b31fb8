# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv replay`: a recorded run once more, to its end or to a moment of it.

Nothing is read from the keyboard: what was typed is in the recording. Output, messages and exit code are
those of the recorded run.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

import pyhv
from pyhv.cli.messages import is_verbose, say, verbose_option
from pyhv.cli.options import file, watching_options
from pyhv.errors import ExitCode

if TYPE_CHECKING:
    from pyhv.cli.session import RunOptions, Session
    from pyhv.until import Outcome

EPILOG: Final = """\b
Examples:
  pyhv boot debian --record run.rec
  pyhv replay run.rec
  pyhv replay run.rec --verify --console none
  pyhv replay run.rec --to 2.5s        to a time of the machine
  pyhv replay run.rec --to 100000      to an exit of its guests

\b
Exit codes are those of the recorded run, and
  0    the moment of --to has been reached
  4    the file is no recording, or an image is missing or has changed
  10   the run is not the recorded one
  130  the recording has no end: the process that recorded was stopped
"""


class StopAt(NamedTuple):
    """Where a replay is to stop; both None: at the end of the recording."""

    seconds: float | None = None
    exits: int | None = None


def _moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> StopAt:
    """A number of exits, or of seconds: with an s, or a point."""
    if value is None:
        return StopAt()
    if re.fullmatch(r"\d+", value):
        return StopAt(exits=int(value))
    if re.fullmatch(r"(\d+(\.\d*)?|\.\d+)s?", value):
        return StopAt(seconds=float(value.rstrip("s")))
    raise click.BadParameter(f"{value!r} is neither an exit's number (100000) nor a time (2.5s).")


@click.command(epilog=EPILOG)
@click.argument("file", type=file(), metavar="FILE")
@click.option(
    "--to", callback=_moment, metavar="EXIT|SECONDS", help="Stop there: at exit 100000, or at 2.5s."
)
@click.option("--verify", is_flag=True, help="Compare the machine with every checkpoint of the recording.")
@watching_options
@verbose_option
def replay(
    file: Path,
    to: StopAt,
    verify: bool,
    console: str,
    digest: Path | None,
    trace: Path | None,
    engine_tuning: bool,
    stats: bool,
) -> None:
    """Have a run again that `--record` or `Machine.record` has written down."""
    from pyhv.cli import session

    options = session.RunOptions(
        virtual_time=True, tuned=engine_tuning, console=console, stats=stats, digest=digest, trace=trace,
        verbose=is_verbose(),
    )  # fmt: skip
    again = _Again(file, to, verify, options)
    code = session.conduct(options, again.make, again.populate, again.drive, again.judge)
    click.get_current_context().exit(code)


class _Again:
    """One replay of the command line."""

    replay: "pyhv.Replay"

    def __init__(self, path: Path, to: StopAt, verify: bool, options: "RunOptions") -> None:
        self._path = path
        self._to = to
        self._verify = verify
        self._options = options

    def make(self) -> "pyhv.Machine":
        """The machine, with the guests that it began with."""
        options = self._options
        self.replay = pyhv.Replay(self._path, verify=self._verify, tuned=options.tuned, measure=options.stats)
        return self.replay.machine

    def populate(self, session: "Session") -> None:
        """Take in the guests that are there, and those that come."""
        several = len(self.replay.machine.guests) > 1

        def take_in(guest: "pyhv.Guest") -> None:
            session.take_in(guest, guest.name, several=several or len(session.booted) > 0)

        for guest in self.replay.machine.guests:
            take_in(guest)
        self.replay.on_guest = take_in

    def drive(self, session: "Session") -> "Outcome":
        """Let it run to where it is to stop; STOPPED stands for all but the recorded end."""
        from pyhv.cli import terminal
        from pyhv.until import Outcome, When

        with terminal.Signals(None) as signals:
            outlet = session.outlet

            def stop() -> bool:
                session.left = outlet is not None and outlet.closed
                return session.left or signals.received != 0

            self._outcome = self.replay.run(to=self._to.seconds, to_exit=self._to.exits, until=When(stop))
            session.signal = signals.received
        finish = self.replay.finish
        if finish is None or finish.outcome not in Outcome.__members__:
            return Outcome.STOPPED
        return Outcome[finish.outcome]

    def judge(self, session: "Session", outcome: "Outcome") -> int:
        """Say what the recorded run said, or why there is no end."""
        replay, finish = self.replay, self.replay.finish
        if session.signal or session.left:
            return session.result(outcome)
        if self._verify:
            say(f"{replay.compared} checkpoints are the same")
        if self._outcome is not None:
            say(f"stopped at {replay.machine.position}")
            return ExitCode.OK
        if finish is None:
            say(f"{self._path}: the recording ends here, at {replay.machine.position}, and has no end")
            return ExitCode.INTERRUPTED
        code = session.result(outcome)
        return code if finish.exit_code is None else finish.exit_code
