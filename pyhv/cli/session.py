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
from typing import Final

import click

from pyhv.abi.numbers import Shutdown
from pyhv.board import USUAL_DOMAINS
from pyhv.cli import consoles, loop, terminal
from pyhv.cli.messages import printable, say
from pyhv.cli.saving import SaveOptions, Saver, Sought, check_directory
from pyhv.cli.verdict import CONVENTIONS, OTHER_ENDS, Report, Watcher, readable, worst
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.errors import ExitCode
from pyhv.loader.image import KernelImage, Symbol
from pyhv.machine import Machine, MachineConfig
from pyhv.observe.digest import Digest
from pyhv.observe.trace import Trace
from pyhv.resident import Ended
from pyhv.until import AllEnded, Nanoseconds, Outcome, Until, When
from pyhv.xenstore.peers import introduce_peers

TAIL_LINES: Final = 12
"""Console lines that go into a crash report."""


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """One domain to be. `verdict` is how its output is judged, a key of `verdict.CONVENTIONS`."""

    config: DomainConfig
    image: KernelImage
    ramdisk: bytes
    command_line: bytes
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
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
    save: SaveOptions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BootOptions:
    """What to boot."""

    guests: list[GuestOptions]
    run: RunOptions
    scheduler: str = "credit"
    seed: int = 0


@dataclass(slots=True)
class BootedGuest:
    """A guest and its end of the console."""

    domain: Domain
    """Not to be looked at when it has `ended`."""
    verdict: str
    watcher: Watcher
    tail: consoles.Tail
    prefixed: consoles.Prefixed | None
    symbols: tuple[Symbol, ...]
    ended: Ended | None = None

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.domain.name

    @property
    def goes_on(self) -> bool:
        """It has neither ended nor suspended itself."""
        return self.ended is None and self.domain.alive

    @property
    def reason(self) -> int | None:
        """Why it has ended or suspended itself."""
        return self.domain.life.reason if self.ended is None else self.ended.reason

    def finish(self) -> None:
        """The guest will print no more."""
        if self.prefixed is not None:
            self.prefixed.finish()
        self.watcher.finish()


@dataclass(slots=True)
class Session:
    """A run in progress."""

    options: RunOptions
    target: consoles.Output
    machine: Machine = field(init=False)
    booted: list[BootedGuest] = field(default_factory=list)
    hypervisor_console: "HypervisorConsole" = field(init=False)
    sought: list[Sought] = field(default_factory=list)
    """Consoles that are watched for what the machine is to be saved at."""
    saver: Saver | None = None
    left: bool = False
    """The person, or the reader of the output, has gone."""
    signal: int = 0
    real_ns: int = 0

    def __post_init__(self) -> None:
        self.hypervisor_console = HypervisorConsole(shown=self.options.verbose)

    def domain_ended(self, ended: Ended) -> None:
        """A domain has been taken apart."""
        for booted in self.booted:
            if booted.domain.domid == ended.domid:
                booted.ended = ended

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
                source = consoles.ConsoleInput(fd, self._feed, signals.retire)
            inputs: list[loop.InputSource] = []
            if source is not None:
                stack.callback(source.close)
                inputs = [signals, source]

            outlet = self.target if isinstance(self.target, consoles.Outlet) else None

            def stop() -> bool:
                if source is not None:
                    source.retry()
                if outlet is not None:
                    outlet.go_on()
                    self.left = self.left or outlet.closed
                return self.left or signals.received != 0

            gc.freeze()  # what exists now stays: the collector need not look at it at every turn
            began = time.monotonic_ns()
            try:
                until: Until = AllEnded()
                if self.options.timeout_ns is not None:
                    until |= Nanoseconds(self.options.timeout_ns)
                until |= When(stop)
                if self.saver is not None:
                    until = self.saver.until() | until
                return loop.run(self.machine, until, inputs, outlet)
            finally:
                self.real_ns = time.monotonic_ns() - began
                self.signal = signals.received

    def finish(self) -> bool:
        """All that was printed goes out, as long as its reader takes; False if the reader has gone."""
        outlet = self.target if isinstance(self.target, consoles.Outlet) else None
        while True:
            more = self.machine.dom0.go_on()
            if outlet is not None:
                outlet.finish()
            if not more:
                break
        for booted in self.booted:
            booted.finish()
            if outlet is not None:
                outlet.finish()
        return outlet is None or not outlet.closed

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

    def _leave(self) -> None:
        self.left = True

    def _feed(self, data: bytes) -> int:
        return self.machine.input(self.booted[0].domain, data)

    def result(self, outcome: Outcome) -> int:
        """Say what is to be said about the end, and return the exit code.

        An interruption decides alone: the run was not over. Else the gravest of the machine's outcome and
        each guest's verdict.
        """
        codes = [self._judge(booted) for booted in self.booted if not booted.goes_on]
        running = ", ".join(booted.name for booted in self.booted if booted.goes_on)
        if self.signal:
            return 128 + self.signal
        if outcome is Outcome.STOPPED:
            return ExitCode.INTERRUPTED
        if outcome is Outcome.DEADLOCK:
            say(f"deadlock: {running} wait for events, and nothing is left that could cause one")
            codes.append(ExitCode.DEADLOCK)
            codes += [self._unfinished(booted) for booted in self.booted if booted.goes_on]
        elif outcome is Outcome.TIMEOUT:
            say(f"the time budget is spent; still running: {running}")
            codes.append(ExitCode.TIMEOUT)
            codes += [self._unfinished(booted) for booted in self.booted if booted.goes_on]
        return worst(codes)

    def _judge(self, booted: BootedGuest) -> ExitCode:
        """One guest that has ended. Only one that powered off can have succeeded."""
        ended = booted.ended
        reason = booted.reason
        if reason in (Shutdown.CRASH, Shutdown.WATCHDOG) or (ended is not None and ended.halted):
            self._tell_crash(booted)
            return ExitCode.CRASH
        code = ExitCode.OK
        if reason == Shutdown.POWEROFF:
            if self.options.verbose:
                say(f"{booted.name} powered off")
        elif reason in list(Shutdown):
            say(f"{booted.name} {OTHER_ENDS[Shutdown(reason)]}")
            code = ExitCode.ENDED
        else:
            say(f"{booted.name} ended itself: reason {reason}, which is none of Xen's")
            code = ExitCode.FAILURE
        convention = booted.watcher.convention
        verdict = convention.code()
        if verdict is not ExitCode.OK:
            reason_text = f": {convention.reason}" if convention.reason else ""
            say(f"{booted.name} {convention.report.value}{reason_text}")
        code = worst([code, verdict])
        if code is not ExitCode.OK:
            self._tell_last_words(booted)
        return code

    def _unfinished(self, booted: BootedGuest) -> ExitCode:
        """One guest that has not ended but may have reported a failure already."""
        self._tell_last_words(booted)
        convention = booted.watcher.convention
        if convention.report is not Report.FAILURE:
            return ExitCode.OK
        say(f"{booted.name} {convention.report.value}: {convention.reason}")
        return ExitCode.FAILURE

    def _tell_crash(self, booted: BootedGuest) -> None:
        ended = booted.ended
        report = None if ended is None else ended.report
        tail = booted.tail.lines(TAIL_LINES)
        if report is None:
            cause = (ended.cause if ended is not None else None) or "it said so itself"
            say(f"{booted.name} crashed: {cause}")
            for line in tail if self.options.console == "none" else []:
                click.echo(f"  {readable(line)}", err=True)
        else:
            from pyhv.observe import crash

            say(crash.render(report, booted.symbols, tail).rstrip("\n"))
        self._tell_last_words(booted)

    def _tell_last_words(self, booted: BootedGuest) -> None:
        """What a guest that did not end well has last written to the hypervisor's console.

        A kernel that dies before it has a console of its own says why there, if anywhere.
        """
        lines = self.hypervisor_console.tail(booted.domain, TAIL_LINES)
        if lines and not self.options.verbose:  # else all of it has been shown
            say(f"last lines of {booted.name} on the hypervisor's console:")
            for line in lines:
                click.echo(f"  {readable(line)}", err=True)


def run(options: BootOptions) -> int:
    """Boot, and return the exit code. Raises PyhvError for what is wrong with the options."""

    config = MachineConfig(
        memory_pages=sum(guest.config.memory_pages for guest in options.guests),
        scheduler=options.scheduler,
        virtual_time=options.run.virtual_time,
        seed=options.seed,
        measure=options.run.stats,
        tuned=options.run.tuned,
        max_domains=max(USUAL_DOMAINS, len(options.guests)),
    )

    def begin(session: Session) -> Machine:
        session.machine = machine = Machine(config)
        try:
            for guest in options.guests:
                _boot(session, guest, several=len(options.guests) > 1)
            if len(session.booted) > 1:
                introduce_peers(
                    machine.store, machine.residents.domids(), _couples(options.guests, session.booted)
                )
        except BaseException:
            machine.close()
            raise
        return machine

    return conduct(options.run, begin)


def conduct(options: RunOptions, begin: Callable[["Session"], Machine]) -> int:
    """A run from beginning to end: open what is written, `begin` a machine with its guests, run, report."""
    with ExitStack() as stack:
        target = consoles.open_console(options.console, sys.stdout.buffer, patient=options.virtual_time)
        digest_file = _output(options.digest, "the digest", stack)
        trace_file = _output(options.trace, "the trace", stack)
        if options.save is not None:
            check_directory(options.save.path)
        session = Session(options, target)
        machine = session.machine = begin(session)
        stack.callback(machine.close)
        machine.services.debug_sink = session.hypervisor_console.output
        digest, trace = Digest(), None
        if digest_file is not None:
            machine.observe(digest)
        if trace_file is not None:
            trace = Trace(trace_file.output)
            machine.observe(trace)
            stack.callback(trace.flush)
        if options.save is not None:
            session.saver = Saver(options.save, machine, session.sought)
        outcome = session.run()
        if not session.left and not session.signal and not session.finish():
            session.left, outcome = True, Outcome.STOPPED
        saved = session.saver is not None and session.saver.save(session.booted)
        if outcome is Outcome.STOPPED and not session.left and not session.signal:
            outcome = Outcome.ENDED  # it was the saver's wish, and came too late
        code = ExitCode.OK if saved else session.result(outcome)
        if digest_file is not None:
            digest_file.output(digest.summary().encode())
        if options.stats:
            _print_statistics(machine, session.real_ns)
        return code


def _couples(guests: list[GuestOptions], booted: list[BootedGuest]) -> list[tuple[int, int]]:
    """Each ping and the pong that comes next to it."""
    named = list(zip([guest.image.name for guest in guests], booted, strict=True))
    return [
        (one.domain.domid, other.domain.domid)
        for (first, one), (second, other) in pairwise(named)
        if (first, second) == ("ping", "pong")
    ]


def _boot(session: Session, guest: GuestOptions, *, several: bool) -> None:
    number = len(session.booted)
    end = console_end(session, number, guest.config.name, guest.verdict, several=several)
    domain = session.machine.create(
        guest.image,
        guest.config,
        ramdisk=guest.ramdisk,
        cmdline=guest.command_line,
        console=end.tee,
        on_end=session.domain_ended,
    )
    if session.options.verbose:
        pages = guest.config.memory_pages
        say(f"domain {domain.domid} is {domain.name}: {guest.image.name}, {pages} pages")
    session.booted.append(end.of(domain, guest.image.symbols))


@dataclass(frozen=True, slots=True)
class ConsoleEnd:
    """Where a guest's console output goes."""

    verdict: str
    watcher: Watcher
    tail: consoles.Tail
    prefixed: consoles.Prefixed | None
    tee: consoles.Tee

    def of(self, domain: Domain, symbols: tuple[Symbol, ...]) -> BootedGuest:
        """The guest whose console it is."""
        return BootedGuest(domain, self.verdict, self.watcher, self.tail, self.prefixed, symbols)


def console_end(session: Session, number: int, name: str, verdict: str, *, several: bool) -> ConsoleEnd:
    """An end for the console of guest `number`; one of `several` has its name before each line."""
    options = session.options
    prefixed = None
    if several:
        colour = number if options.console == "stdio" and _has_colours() else None
        prefixed = consoles.Prefixed(session.target, printable(name), colour)
    watcher, tail = Watcher(CONVENTIONS[verdict]()), consoles.Tail()
    others: list[consoles.Output] = [watcher, tail]
    if options.save is not None and options.save.when is not None:
        session.sought.append(Sought(options.save.when))
        others.append(session.sought[-1])
    tee = consoles.Tee(prefixed or session.target, *others)
    return ConsoleEnd(verdict, watcher, tail, prefixed, tee)


class HypervisorConsole:
    """What guests write to the hypervisor's own console (console_io): remembered at its end, and shown, line
    by line, on standard error."""

    def __init__(self, *, shown: bool) -> None:
        self._target = consoles.Stream(sys.stderr.buffer, "standard error") if shown else None
        self._lines: dict[int, consoles.Prefixed] = {}
        self._tails: dict[int, consoles.Tail] = {}

    def output(self, domain: Domain, text: bytes) -> None:
        """More text from `domain`."""
        self._tails.setdefault(domain.domid, consoles.Tail()).output(text)
        if self._target is None:
            return
        lines = self._lines.get(domain.domid)
        if lines is None:
            lines = self._lines[domain.domid] = consoles.Prefixed(self._target, f"{domain.name} (console_io)")
        lines.output(text)

    def tail(self, domain: Domain, count: int) -> list[bytes]:
        """Up to `count` last lines of `domain`."""
        found = self._tails.get(domain.domid)
        return [] if found is None else found.lines(count)


def _output(path: Path | None, what: str, stack: ExitStack) -> consoles.Stream | None:
    if path is None:
        return None
    return consoles.Stream(stack.enter_context(consoles.open_output(path, what)), str(path))


def _has_colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _print_statistics(machine: Machine, real_ns: int) -> None:
    from rich.console import Console

    from pyhv.observe import stats

    Console(stderr=True).print(stats.render(stats.collect(machine, real_ns)))
