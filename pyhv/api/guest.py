# SPDX-License-Identifier: GPL-2.0-only
"""A guest as its user handles it: text in and out, verbs, and a look inside.

A `Guest` is a handle. It stays valid when its domain has ended, with what is known of that, and when the
machine is put back to another moment. Times are seconds of the machine.
"""

import functools
import re
import shlex
from collections.abc import Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from pyhv.abi.numbers import Hypercall, Shutdown
from pyhv.api.console import Console, ConsoleNotes, Found
from pyhv.api.memory import Memory
from pyhv.api.notes import GuestNotes
from pyhv.api.wires import Wires
from pyhv.api.words import expression
from pyhv.cpu.registers import Registers
from pyhv.domain.domain import Domain
from pyhv.domain.lifecycle import Lifecycle
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import ConfigError, PyhvError
from pyhv.frozen import frozen
from pyhv.loader.image import Symbol, SymbolTable
from pyhv.loader.origin import NOWHERE, Origin
from pyhv.machine import Machine
from pyhv.net.spec import NetSpec
from pyhv.net.spec import parse as parse_net
from pyhv.resident import Counts, Ended, Resident
from pyhv.traps.report import CrashReport
from pyhv.until import Outcome, Seconds, Until, When

if TYPE_CHECKING:
    from pyhv.api.looking_back import Written
    from pyhv.storage.spec import DiskSpec

__tracebackhide__ = True  # pytest shows the line that has asked, and not ours

EXPECT_SECONDS: Final = 60.0
_LONGEST_LINE: Final = 900
"""Characters of a command: shells and terminals take no longer lines."""


Pattern: TypeAlias = str | bytes | re.Pattern[str] | re.Pattern[bytes]


class GuestFailed(PyhvError, AssertionError):
    """A guest that did not do what was expected of it; the message has the end of its console."""


@frozen
class Ran:
    """What a command in a guest's shell answered; true if it succeeded, which is `status` 0."""

    command: str
    status: int
    output: str

    def __bool__(self) -> bool:
        return self.status == 0


@frozen
class End:
    """How a guest ended: `reason` is poweroff, reboot, crash, watchdog, soft_reset, halt or destroyed.

    Or a number, where the guest named one that Xen does not know.
    """

    reason: str
    cause: str | None
    """What it died of; None if it ended as it wanted."""
    report: CrashReport | None = field(default=None, repr=False)
    """What was known of it when it crashed."""
    counts: Counts = field(default_factory=Counts, repr=False)
    """What it has done in all its life."""

    @classmethod
    def of(cls, ended: Ended) -> "End":
        """From what the machine tells."""
        if ended.reason is None:
            reason = "destroyed"
        elif ended.halted:
            reason = "halt"
        elif ended.reason in list(Shutdown):
            reason = Shutdown(ended.reason).name.lower()
        else:
            reason = str(ended.reason)
        return cls(reason, ended.cause, ended.report, ended.counts)


class Remembers(Protocol):
    """What a guest needs of its machine's history."""

    def who_wrote(self, domid: int, va: int, length: int) -> "Written | None":
        """Who stored last to some bytes of a domain."""


class GuestHost(Protocol):
    """What a guest needs of its machine."""

    hypervisor: Machine
    wires: Wires
    """What its networks lead to outside."""

    @property
    def remembered(self) -> "Remembers":
        """Its history. ConfigError: it has none."""

    def note_disks(self, domain: Domain) -> None:
        """It has got disks: a recording is to find the same again."""

    def resident(self, guest: "Guest") -> Resident | None:
        """The record of a guest that has not ended."""

    def run(self, until: Until) -> Outcome:
        """Run the machine."""

    def type_in(self, guest: "Guest", data: bytes) -> None:
        """Bytes for a guest's console, which come when it has room for them."""

    def offer(self, guest: "Guest", data: bytes) -> int:
        """As many of these bytes for its console as it has room for; how many that were."""


class Processor:
    """One virtual processor, while the machine does not run."""

    def __init__(self, hypervisor: Machine, resident: Resident, number: int) -> None:
        self._hypervisor = hypervisor
        self._resident = resident
        self.number = number

    @property
    def registers(self) -> Registers:
        """Its registers, a copy."""
        return self._vcpu.context.registers

    @property
    def memory(self) -> Memory:
        """Memory as it sees it."""
        return Memory(self._resident.domain, self._vcpu, self._hypervisor.poke)

    @property
    def _vcpu(self) -> Vcpu:
        return self._resident.domain.vcpus[self.number]


class Guest:
    """One guest of a machine."""

    def __init__(
        self,
        host: GuestHost,
        domid: int,
        name: str,
        uuid: str,
        console: Console,
        *,
        named: SymbolTable | None = None,
        symbols: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._host = host
        self.domid = domid
        self.name = name
        self.uuid = uuid
        self._named = named
        """What its kernel's image says of addresses. The image itself, 60 MiB of a Linux, is not kept."""
        self.console = console
        self.verdict = ""
        """How `pyhv restore` is to judge what it prints, as of `pyhv boot --verdict`: goes into snapshots."""
        self.origin: Origin = NOWHERE
        """Where its image is from, which snapshots do not say."""
        self._noted_symbols = symbols
        self._runs = 0
        self.end: End | None = None
        """How it ended; None: it has not."""

    def __repr__(self) -> str:
        return f"<Guest {self.name} (domain {self.domid}) {self.state}>"

    # -- what it is doing --------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """As `xl list` shows it: letters of r(unning) b(locked) p(aused) s(hut down) c(rashed) d(ying)."""
        resident = self._host.resident(self)
        if resident is None:
            return "---sc-" if self.end is not None and self.end.reason == "crash" else "---s--"
        return letters(resident.domain)

    @property
    def suspended(self) -> bool:
        """It has suspended itself, and waits for `resume`."""
        resident = self._host.resident(self)
        return resident is not None and resident.domain.suspended

    @property
    def hypercalls(self) -> dict[str, int]:
        """How often it has made which hypercall."""
        counts = self._there.dispatcher.hypercalls
        return {number.name.lower(): counts[number] for number in Hypercall if counts[number]}

    @property
    def vcpus(self) -> list[Processor]:
        """Its virtual processors."""
        resident = self._there
        hypervisor = self._host.hypervisor
        return [Processor(hypervisor, resident, number) for number in range(len(resident.domain.vcpus))]

    @property
    def registers(self) -> Registers:
        """The registers of its first vCPU."""
        return self.vcpus[0].registers

    @property
    def memory(self) -> Memory:
        """Its memory, as its first vCPU sees it: `guest.memory[va : va + 8]`."""
        return self.vcpus[0].memory

    @functools.cached_property
    def symbols(self) -> dict[str, int]:
        """Addresses of its kernel's symbols by name; empty where the image has none."""
        return {symbol.name: symbol.va for symbol in self.symbol_table}

    @functools.cached_property
    def symbol_table(self) -> tuple[Symbol, ...]:
        """All of its kernel's symbols, by address. Snapshots do not keep their sizes."""
        if self._named is not None:
            return self._named.symbols()
        return tuple(Symbol(va, 0, name) for name, va in self._noted_symbols)

    @property
    def width(self) -> int:
        """Bits of its registers: 64, or 32."""
        return self._there.domain.width

    @property
    def _there(self) -> Resident:
        resident = self._host.resident(self)
        if resident is None:
            raise GuestFailed(self._told("has ended, so there is nothing left to look at"))
        return resident

    # -- text --------------------------------------------------------------------------------------------

    def send(self, text: str | bytes) -> None:
        """Type on its console; what it has no room for waits. One that has ended reads nothing."""
        self._host.type_in(self, text.encode() if isinstance(text, str) else text)

    def offer(self, data: bytes) -> int:
        """Type as much as its console has room for now, and return how many bytes that were.

        For whoever reads from somewhere at the guest's pace; what `send` left waiting comes first.
        """
        return self._host.offer(self, data)

    def expect(self, pattern: Pattern, timeout: float = EXPECT_SECONDS) -> Found:
        """Run the machine until the guest prints what matches a regular expression.

        What was printed before and not yet expected counts. GuestFailed: it has not within `timeout` seconds
        of machine time, or it ended, or nothing can happen any more; with the end of its console.
        """
        return self._await(pattern, timeout, f"has not printed {pattern!r}")

    def _await(self, pattern: Pattern, timeout: float, missing: str) -> Found:
        """`expect`; `missing` says what has not happened if it does not come."""
        wanted, found = expression(pattern), None

        def is_there() -> bool:
            nonlocal found
            found = found or self.console.find(wanted)
            return found is not None or self.end is not None

        outcome = self._host.run(When(is_there) | Seconds(timeout))
        if is_there() and found is not None:
            return found
        raise GuestFailed(self._told(f"{missing}: {self._why(outcome, timeout)}"))

    def run(self, command: str, timeout: float = EXPECT_SECONDS) -> Ran:
        """Run a command in the shell that waits at its console; GuestFailed as `expect`.

        It runs in a subshell: what it sets is gone afterwards. A status other than 0 is no error here.
        """
        self._runs += 1
        mark = f"pyhv-{self._runs}"
        line = f"printf '\\n@%s@\\n' {mark}; (eval {shlex.quote(command)}); printf '\\n@%s=%s@\\n' {mark} $?"
        if len(line) > _LONGEST_LINE:
            raise ConfigError(f"a command of {len(command)} characters is too long for a terminal's line")
        self.send(line + "\n")
        self._await(f"\n@{mark}@\r?\n", timeout, f"has not begun with the command {command!r}")
        done = self._await(
            rf"\r?\n@{mark}=(\d+)@\r?\n", timeout, f"has not come to an end with the command {command!r}"
        )
        return Ran(command, int(done.groups[0] or "0"), done.before)

    def who_wrote(self, va: int, length: int = 8) -> "Written | None":
        """Which instruction stored last to these bytes, as its first vCPU sees them; None: none is known.

        Its machine must have a history (`pyhv.Machine(history=True)`).
        """
        from pyhv.api.looking_back import name_of

        found = self._host.remembered.who_wrote(self._to("tell who wrote").domid, va, length)
        return found and found._replace(symbol=name_of(self.symbol_table, found.rip))

    # -- being put back ----------------------------------------------------------------------------------

    def notes(self) -> GuestNotes:
        """What it is to its user, for a snapshot."""
        return GuestNotes(
            self.domid,
            self.name,
            self.uuid,
            self.console.notes(),
            self._runs,
            [(symbol.name, symbol.va) for symbol in self.symbol_table],
        )

    def begin_anew(self) -> None:
        """Its domain has been created again."""
        self.end, self._runs = None, 0
        self.console.put_back(ConsoleNotes(b"", 0, 0))

    def put_back(self, notes: GuestNotes) -> None:
        """Be again what was noted."""
        self.end, self.uuid, self._runs = None, notes.uuid, notes.runs
        self.console.put_back(notes.console)

    # -- verbs -------------------------------------------------------------------------------------------

    def wait(self, timeout: float = EXPECT_SECONDS) -> End:
        """Run the machine until this guest has ended. GuestFailed as `expect`."""
        outcome = self._host.run(When(lambda: self.end is not None) | Seconds(timeout))
        if self.end is None:
            raise GuestFailed(self._told(f"has not ended: {self._why(outcome, timeout)}"))
        return self.end

    def attach_disk(self, disk: "str | DiskSpec", vdev: str | None = None) -> None:
        """Plug a disk in while the guest runs; `disk` is as `Machine.boot` takes it.

        Without a `vdev` it is the first name that is free. ConfigError, DiskError: it cannot be.
        """
        from pyhv.storage.spec import parse, with_vdevs

        domain = self._to("be given a disk")
        wanted = parse(disk) if isinstance(disk, str) else disk
        if vdev is not None:
            wanted = replace(wanted, vdev=vdev)
        there = [one.spec for one in self._host.hypervisor.dom0.disks(domain.domid)]
        self._host.hypervisor.attach_disk(domain, with_vdevs([*there, wanted])[-1])
        self._host.note_disks(domain)

    def detach_disk(self, vdev: str) -> None:
        """Ask the guest to let a disk go; it is gone when its driver has. ConfigError: it has none such."""
        self._host.hypervisor.detach_disk(self._to("be asked for a disk"), vdev)

    def attach_net(self, net: "str | NetSpec") -> int:
        """Plug a network device in while the guest runs, as `Machine.boot` takes it; returns its number.

        ConfigError, EnvironmentProblem: it cannot be.
        """
        spec = parse_net(net) if isinstance(net, str) else net
        return self._host.wires.attach(self._to("be given a network device"), spec)

    def detach_net(self, number: int) -> None:
        """Ask the guest to let a network device go; it is gone when its driver has. ConfigError."""
        self._host.hypervisor.detach_net(self._to("be asked for a network device"), number)

    def pause(self) -> None:
        """Keep it from running."""
        self._host.hypervisor.pause(self._to("be told to pause"))

    def unpause(self) -> None:
        """Let it run."""
        self._host.hypervisor.unpause(self._to("be told to unpause"))

    def shutdown(self) -> None:
        """Ask it to power itself off, as `xl shutdown` does; it may take its time, or not care."""
        self._ask_to("poweroff")

    def reboot(self) -> None:
        """Ask it to reboot itself: here that is an end."""
        self._ask_to("reboot")

    def suspend(self) -> None:
        """Ask it to suspend itself."""
        self._ask_to("suspend")

    def resume(self) -> None:
        """Let it run on after it has suspended itself, as if the suspension had been cancelled."""
        self._host.hypervisor.resume(self._to("be told to resume"), cancelled=True)

    def destroy(self) -> None:
        """End it now, whatever it does."""
        self._host.hypervisor.destroy(self._to("be told to destroy"))
        self._host.hypervisor.settle()

    def change_uuid(self, new: str) -> None:
        """Have it known by another UUID, as a copy should be. ConfigError: it is none, or another guest's."""
        domain = self._to("have another UUID")
        self._host.hypervisor.change_uuid(domain, new)
        self.uuid = domain.config.uuid

    def _ask_to(self, verb: str) -> None:
        self._host.hypervisor.shutdown(self._to(f"be told to {verb}"), verb)

    def _to(self, what: str) -> Domain:
        """Its domain, for what cannot be done with one that has ended: ConfigError."""
        resident = self._host.resident(self)
        if resident is None:
            raise ConfigError(f"{self.name} has ended, so it cannot {what}.")
        return resident.domain

    # -- messages ----------------------------------------------------------------------------------------

    def activity(self) -> str:
        """What it is doing and did last, for people: where each vCPU is, by symbol, and the latest exits.

        Of one that has ended: how.
        """
        from pyhv.observe import crash

        resident = self._host.resident(self)
        if resident is None:
            end = self.end
            return (
                f"It has ended: {end.reason}{f' ({end.cause})' if end.cause else ''}"
                if end
                else "It is gone."
            )
        names, lines = crash.Symbols(self.symbol_table), []
        for vcpu in resident.domain.vcpus:
            doing = "blocked" if vcpu.blocked else "running" if vcpu.online else "offline"
            where = ""
            if not vcpu.context.empty:
                rip = vcpu.context.registers.rip
                name = names.name(rip)
                where = f" at {rip:#x}" + (f", {name}" if name else "")
            lines.append(f"vCPU {vcpu.number} is {doing}{where}")
        return "\n".join([*lines, *crash.exits(resident.dispatcher.last_exits(), self.width, names)])

    def crash_report(self, tail: Sequence[bytes] | None = None) -> str | None:
        """What is known of its crash, as `pyhv boot` tells it; None: it has not crashed, or said so itself.

        `tail` are the last lines of its console if those that are kept here are not meant.
        """
        from pyhv.observe import crash  # and with it the disassembler

        if self.end is None or self.end.report is None:
            return None
        lines = [line.encode() for line in self.console.tail()] if tail is None else tail
        return crash.render(self.end.report, self.symbol_table, lines)

    def _why(self, outcome: Outcome, timeout: float) -> str:
        if self.end is not None:
            return f"it has ended ({self.end.reason})"
        if outcome is Outcome.DEADLOCK:
            return "every guest waits, and nothing is due"
        if outcome is Outcome.ENDED:
            return "every guest has ended or is suspended"
        return f"{timeout:g} s of the machine's time have passed"

    def _told(self, what: str) -> str:
        tail = "\n".join(f"  {line}" for line in self.console.tail())
        return f"{self.name} {what}" + (f"; the end of its console:\n{tail}" if tail else "")


def letters(domain: Domain) -> str:
    """A domain's state as xl's letters."""
    life = domain.life
    idle = all(vcpu.blocked or not vcpu.online for vcpu in domain.vcpus)
    return "".join(
        letter if holds else "-"
        for letter, holds in (
            ("r", life.stage is Lifecycle.RUNNING and not idle),
            ("b", life.stage is Lifecycle.RUNNING and idle),
            ("p", life.stage is Lifecycle.PAUSED),
            ("s", life.stage is Lifecycle.SUSPENDED),
            ("c", life.reason == Shutdown.CRASH),
            ("d", life.stage is Lifecycle.DYING),
        )
    )
