# SPDX-License-Identifier: GPL-2.0-only
"""One run from beginning to end: a machine, its guests, their consoles, and the exit code.

    open what is written  ->  build machine and guests  ->  run, with signals and keyboard  ->  report

The order matters: files that cannot be written are noticed before anything runs, and the terminal is itself
again before anything is reported. `boot.py` makes `BootOptions` of words; what the codes mean is
`pyhv.errors.ExitCode`'s and their order `verdict.py`'s.
"""

import gc
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pyhv
from pyhv.api.wires import Wires
from pyhv.cli import consoles, loop, terminal
from pyhv.cli.booted import BootedGuest, LastWords
from pyhv.cli.messages import printable, say
from pyhv.cli.saving import SaveOptions, Saver, Sought, check_directory
from pyhv.cli.verdict import CONVENTIONS, Plain, Watcher, worst
from pyhv.errors import ExitCode
from pyhv.frozen import frozen
from pyhv.images.source import Source
from pyhv.observe.digest import Digest
from pyhv.observe.trace import Trace
from pyhv.until import AllEnded, Nanoseconds, Outcome, Until, When

if TYPE_CHECKING:
    from pyhv.api.stub import GdbStub
    from pyhv.cli.covering import Covering
    from pyhv.net.pcap import Capture
    from pyhv.net.spec import NetSpec
    from pyhv.storage.spec import DiskSpec


@frozen
class GuestOptions:
    """One domain to be. `verdict` is how its output is judged, a key of `verdict.CONVENTIONS`."""

    source: Source
    name: str
    verdict: str
    disks: "list[DiskSpec]" = field(default_factory=list)


@frozen(kw_only=True)
class RunOptions:
    """How to run and what to keep of it. `console` is the option's text; times in ns of machine time."""

    virtual_time: bool = False
    tuned: bool = True
    timeout_ns: int | None = None
    console: str = "stdio"
    stats: bool = False
    digest: Path | None = None
    trace: Path | None = None
    verbose: bool = False
    record: Path | None = None
    save: SaveOptions | None = None
    gdb: str | None = None
    """Where gdb is served, if it is."""

    @property
    def patient(self) -> bool:
        """Whether the machine waits for the reader of its output: what guests do must not depend on that."""
        return self.virtual_time or self.record is not None


@frozen(kw_only=True)
class BootOptions:
    """What to boot; what is not said of each guest is said of all."""

    guests: list[GuestOptions]
    run: RunOptions
    vcpus: int = 1
    weight: int = 256
    cap: int = 0
    append: str = ""
    nets: "list[NetSpec]" = field(default_factory=list)
    captures: list[tuple[str, Path]] = field(default_factory=list)
    """(switch or device, or all if it is empty; file)."""
    scheduler: str = "credit"
    seed: int = 0
    coverage: Path | None = None


@frozen
class _Wires:
    """What comes from outside by networks, as long as there is any (`loop.InputSource`)."""

    wires: Wires
    ended: Callable[[], None]

    def fileno(self) -> int:
        """What to wait on."""
        return self.wires.fileno()

    def pump(self) -> bool:
        """Take what has come. False: no network leads outside any more."""
        there = self.wires.pump()
        if not there:
            self.ended()
        return there


@dataclass(slots=True)
class Session:
    """A run in progress."""

    options: RunOptions
    target: consoles.Output
    machine: pyhv.Machine
    booted: list[BootedGuest] = field(default_factory=list)
    sought: list[Sought] = field(default_factory=list)
    """Consoles that are watched for what the machine is to be saved at."""
    saver: Saver | None = None
    captures: "list[Capture]" = field(default_factory=list)
    sources: int = 0
    """From where input may come yet."""
    left: bool = False
    """The person, or the reader of the output, has gone."""
    gdb: "GdbStub | None" = None
    signal: int = 0
    real_ns: int = 0

    def take_in(self, guest: pyhv.Guest, shown: str, *, several: bool) -> None:
        """What a guest prints is ours; one of `several` has its name, as it is `shown`, before each line."""
        options, prefixed = self.options, None
        if several:
            colour = len(self.booted) if options.console == "stdio" and _has_colours() else None
            prefixed = consoles.Prefixed(self.target, printable(shown), colour)
        watcher, tail = Watcher(CONVENTIONS.get(guest.verdict, Plain)()), consoles.Tail()
        others: list[consoles.Output] = [watcher, tail]
        if options.save is not None and options.save.when is not None:
            self.sought.append(Sought(options.save.when))
            others.append(self.sought[-1])
        guest.console.keep = 0  # of what goes elsewhere, `tail` is enough
        guest.console.sink = consoles.Tee(prefixed or self.target, *others)
        last_words = LastWords(guest.name, shown=options.verbose)
        unseen = options.console == "none"
        self.booted.append(BootedGuest(guest, watcher, tail, prefixed, last_words, unseen))

    def last_words(self, guest: pyhv.Guest, text: bytes) -> None:
        """A guest writes to the hypervisor's console."""
        next(one for one in self.booted if one.guest is guest).last_words.output(text)

    def run(self) -> Outcome:
        """Run until the machine has an outcome; the terminal is restored whatever happens."""
        with ExitStack() as stack:
            fd = self._keyboard_fd()
            single = fd is not None and os.isatty(fd) and len(self.booted) == 1
            raw = terminal.RawTerminal(fd) if fd is not None and single else None
            signals = stack.enter_context(terminal.Signals(raw))
            source: consoles.ConsoleInput | None = None
            if raw is not None and fd is not None:
                stack.enter_context(raw)
                say("Ctrl-] leaves")
                source = terminal.Keyboard(fd, self._feed, self._leave)
            elif fd is not None:
                source = consoles.ConsoleInput(fd, self._feed, lambda: self._has_ended(signals))
            inputs: list[loop.InputSource] = []
            if source is not None:
                stack.callback(source.close)
                inputs.append(source)
            if self.machine.wires:
                inputs.append(_Wires(self.machine.wires, lambda: self._has_ended(signals)))
            self.sources = len(inputs)
            if inputs:
                inputs.insert(0, signals)

            outlet = self.outlet

            def stop() -> bool:
                if source is not None:
                    source.retry()
                for sentence in self.machine.wires.take_lost():
                    say(sentence)
                if outlet is not None:
                    outlet.go_on()
                    self.left = self.left or outlet.closed
                return self.left or signals.received != 0

            gc.freeze()  # what exists now stays: the collector need not look at it at every turn
            gc.enable()
            began = time.monotonic_ns()
            try:
                until: Until = AllEnded()
                if self.options.timeout_ns is not None:
                    until |= Nanoseconds(self.options.timeout_ns)
                until |= When(stop)
                if self.saver is not None:
                    until = self.saver.until() | until
                return loop.run(self.machine, until, inputs, outlet, self.gdb)
            finally:
                self.real_ns = time.monotonic_ns() - began
                self.signal = signals.received

    def finish(self) -> bool:
        """All that was printed goes out, as long as its reader takes; False if the reader has gone."""
        outlet = self.outlet
        while True:
            more = self.machine.drain()
            if outlet is not None:
                outlet.finish()
            if not more:
                break
        for booted in self.booted:
            booted.finish()
            if outlet is not None:
                outlet.finish()
        return outlet is None or not outlet.closed

    @property
    def outlet(self) -> consoles.Outlet | None:
        """Standard output, if the console is there."""
        return self.target if isinstance(self.target, consoles.Outlet) else None

    def _keyboard_fd(self) -> int | None:
        """Standard input, if it is there and the console is ours."""
        if self.options.console != "stdio":
            return None
        try:
            fd = sys.stdin.fileno()
            os.fstat(fd)
        except (OSError, AttributeError, ValueError):  # closed, or no file at all
            return None
        if os.isatty(fd) and not terminal.is_usable_terminal(fd):  # in the background: reading would stop us
            return None
        return fd

    def _has_ended(self, signals: terminal.Signals) -> None:
        """A source of input has ended; with the last one, signals are no longer waited for."""
        self.sources -= 1
        if not self.sources:
            signals.retire()

    def _leave(self) -> None:
        self.left = True

    def _feed(self, data: bytes) -> int:
        return self.booted[0].guest.offer(data)

    def result(self, outcome: Outcome) -> int:
        """Say what is to be said about the end, and return the exit code.

        An interruption decides alone: the run was not over. Else the gravest of the machine's outcome and
        each guest's verdict.
        """
        codes = [one.judge(verbose=self.options.verbose) for one in self.booted if not one.goes_on]
        going_on = [one for one in self.booted if one.goes_on]
        names = ", ".join(one.guest.name for one in going_on)
        if self.signal:
            return 128 + self.signal
        if outcome is Outcome.STOPPED:
            return ExitCode.INTERRUPTED
        if outcome is Outcome.DEADLOCK:
            say(f"deadlock: {names} wait for events, and nothing is left that could cause one")
            codes += [ExitCode.DEADLOCK, *(one.unfinished() for one in going_on)]
        elif outcome is Outcome.TIMEOUT:
            say(f"the time budget is spent; still running: {names}")
            codes += [ExitCode.TIMEOUT, *(one.unfinished() for one in going_on)]
        return worst(codes)


def run(options: BootOptions) -> int:
    """Boot, and return the exit code. Raises PyhvError for what is wrong with the options."""

    covering = None if options.coverage is None else _covering(options.coverage, options.guests)

    def make() -> pyhv.Machine:
        machine = pyhv.Machine(
            sum(guest.source.memory for guest in options.guests) << 20,
            scheduler=options.scheduler,
            virtual_time=options.run.virtual_time,
            seed=options.seed,
            measure=options.run.stats,
            tuned=options.run.tuned,
            max_domains=len(options.guests),
            record=options.run.record,
            history=options.run.gdb is not None,
        )
        if covering is not None:
            covering.watch(machine)
        return machine

    def populate(session: Session) -> None:
        machine = session.machine
        for wanted in options.guests:
            guest = machine.boot(
                wanted.source,
                name=wanted.name,
                vcpus=options.vcpus,
                weight=options.weight,
                cap=options.cap,
                append=options.append,
                disks=wanted.disks,
                nets=options.nets or None,
            )
            guest.verdict = wanted.verdict
            if covering is not None:
                covering.take_in(guest)
            if machine.recording is not None:
                from pyhv.api.recording import VERDICT

                machine.recording.note(VERDICT, guest.domid, wanted.verdict)
            session.take_in(guest, guest.name, several=len(options.guests) > 1)
            if options.run.verbose:
                image, pages = wanted.source.image, wanted.source.memory << 8
                say(f"domain {guest.domid} is {guest.name}: {image.name}, {pages} pages")
        for name, path in options.captures:
            session.captures.append(machine.capture(path, name))
        if len(options.guests) > 1:
            machine.introduce_peers(*_couples(options.guests, machine.guests))

    if covering is None:
        return conduct(options.run, make, populate)
    with covering:
        code = conduct(options.run, make, populate)
    covering.write()
    return code


def _covering(target: Path, guests: list[GuestOptions]) -> "Covering":
    from pyhv.cli.covering import Covering

    return Covering(target, [guest.source for guest in guests])


def _couples(wanted: list[GuestOptions], guests: list[pyhv.Guest]) -> list[tuple[pyhv.Guest, pyhv.Guest]]:
    """Each ping and the pong that comes next to it."""
    names = pairwise(one.source.image.name for one in wanted)
    return [pair for pair, named in zip(pairwise(guests), names, strict=True) if named == ("ping", "pong")]


def conduct(
    options: RunOptions,
    make: Callable[[], pyhv.Machine],
    populate: Callable[[Session], None],
    drive: Callable[[Session], Outcome] = Session.run,
    judge: Callable[[Session, Outcome], int] = Session.result,
) -> int:
    """A run from beginning to end: open what is written, `make` a machine, `populate` it, run, report.

    `drive` lets it run, and `judge` says what is to be said of its end and returns the exit code.
    """
    with ExitStack() as stack:
        target = consoles.open_console(options.console, sys.stdout.buffer, patient=options.patient)
        digest_file = _output(options.digest, "the digest", stack)
        trace_file = _output(options.trace, "the trace", stack)
        if options.save is not None:
            check_directory(options.save.path)
        machine = stack.enter_context(make())
        session = Session(options, target, machine)
        populate(session)
        machine.on("console_io", session.last_words)
        digest = Digest()
        if digest_file is not None:
            machine.on("exit", digest.exit)
        if trace_file is not None:
            trace = Trace(trace_file.output)
            machine.on("exit", trace.exit)
            stack.callback(trace.flush)
        if options.gdb is not None:
            if machine.hypervisor.clock.counted:
                machine.keep_history()
            session.gdb = stack.enter_context(machine.gdb(options.gdb))
            say(f"waiting for gdb: {session.gdb.command}")
        if options.save is not None:
            session.saver = Saver(options.save, machine, session.sought)
        outcome = drive(session)
        if not session.left and not session.signal and not session.finish():
            session.left, outcome = True, Outcome.STOPPED
        going_on = any(one.goes_on for one in session.booted)
        saved = session.saver is not None and session.saver.save(going_on=going_on)
        if outcome is Outcome.STOPPED and not session.left and not session.signal:
            outcome = Outcome.ENDED  # it was the saver's wish, and came too late
        for capture in session.captures:
            if capture.problem:
                say(capture.problem)
        code = ExitCode.OK if saved else judge(session, outcome)
        if machine.recording is not None:
            machine.recording.close(outcome.name, code)
            say(f"recorded: pyhv replay {machine.recording.path}")
        if digest_file is not None:
            digest_file.output(digest.summary().encode())
        if options.stats:
            _print_statistics(machine, session.real_ns)
        return code


def _output(path: Path | None, what: str, stack: ExitStack) -> consoles.Stream | None:
    if path is None:
        return None
    return consoles.Stream(stack.enter_context(consoles.open_output(path, what)), str(path))


def _has_colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _print_statistics(machine: pyhv.Machine, real_ns: int) -> None:
    from rich.console import Console

    from pyhv.observe import stats

    Console(stderr=True).print(stats.render(stats.collect(machine.hypervisor, real_ns)))
