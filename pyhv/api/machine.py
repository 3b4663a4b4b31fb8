# SPDX-License-Identifier: GPL-2.0-only
"""A machine as its user handles it: guests by name, running until something, and everything put back.

    with pyhv.Machine(memory="1G", virtual_time=True, seed=1) as machine:
        guest = machine.boot("debian", memory="128M")
        guest.expect(r"/ # ")

The hypervisor behind it is `pyhv.machine`; whatever is more than a few lines is done there.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, overload
from weakref import WeakValueDictionary

from pyhv.api.console import Console
from pyhv.api.guest import End, Guest, Pattern
from pyhv.api.listening import ExitListener, HypercallListener, HypercallMade
from pyhv.api.notes import GuestNotes, MachineNotes, read_notes
from pyhv.api.wanted import Bootable, disks_of, nets_of, ramdisk_of, source_of
from pyhv.api.wires import PIECE_NS, Wires
from pyhv.api.wires import run as run_wired
from pyhv.api.words import expression, pages
from pyhv.board import USUAL_DOMAINS
from pyhv.cpu.exits import ExitRecord
from pyhv.devices.console_log import ConsoleSink
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.errors import ConfigError, ReplayError
from pyhv.images import source as images
from pyhv.loader.image import SymbolTable
from pyhv.loader.origin import Origin
from pyhv.loader.ramdisk import Ramdisk
from pyhv.machine import Machine as Hypervisor
from pyhv.machine import MachineConfig
from pyhv.net.pcap import Capture
from pyhv.net.spec import NetSpec
from pyhv.outside import Position
from pyhv.resident import Ended, Resident
from pyhv.state import state
from pyhv.until import AllEnded, Exits, Outcome, Reaches, Runnable, Seconds, Until, When

if TYPE_CHECKING:
    from pyhv.api.history import Granularity, History
    from pyhv.api.recording import Recording
    from pyhv.api.stub import GdbStub
    from pyhv.snapshot.snapshot import Snapshot
    from pyhv.storage.spec import DiskSpec

Cancel: TypeAlias = Callable[[], None]
"""Ends what was begun."""


class Machine:
    """One computer for several guests. A context manager, or `close` it.

    `memory` is for the guests together, `"1G"` or bytes; `scheduler` "credit" or "rr". With `virtual_time`
    time comes from executed code, and `seed` makes the same run each time. `measure` times the handlers of
    exits for `pyhv.observe.stats`; `tuned` is as of `pyhv.machine.MachineConfig`; for more guests at once
    than `pyhv.board.USUAL_DOMAINS`, say with `max_domains` how many. `record` is the file of a recording, as
    of the method; with `history` it can go back (`step_back`). In real time both want time to be counted
    (`pyhv.paced`), so they have to be asked for here. ConfigError.
    """

    guest_type: ClassVar[type[Guest]] = Guest
    """What its handles are; a subclass may have handles of a subclass."""

    def __init__(
        self,
        memory: str | int = "1G",
        *,
        scheduler: str = "credit",
        virtual_time: bool = False,
        seed: int = 0,
        measure: bool = False,
        tuned: bool = True,
        max_domains: int = USUAL_DOMAINS,
        record: Path | str | None = None,
        history: bool = False,
    ) -> None:
        config = MachineConfig(
            pages(memory),
            scheduler=scheduler,
            virtual_time=virtual_time,
            paced=not virtual_time and (history or record is not None),
            seed=seed,
            measure=measure,
            tuned=tuned,
            max_domains=max(max_domains, USUAL_DOMAINS),
        )
        self._begin(Hypervisor(config))
        try:
            if record is not None:
                self.record(record)
            if history:
                self.keep_history()
        except BaseException:
            self.close()
            raise

    @classmethod
    def over(cls, hypervisor: Hypervisor) -> Self:
        """The facade of a hypervisor that has no guest yet."""
        machine = cls.__new__(cls)
        machine._begin(hypervisor)
        return machine

    def _begin(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        """What does the work: the whole of `pyhv.machine`, for whoever looks deeper."""
        self._guests: dict[int, Guest] = {}
        self._known: WeakValueDictionary[tuple[int, str], Guest] = WeakValueDictionary()
        """Handles by the domid and UUID that snapshots know them by: their guest may be put back to life."""
        self._typed: dict[int, bytearray] = {}
        self.history: History | None = None
        """What it remembers of its run."""
        self.recording: Recording | None = None
        """What it is being recorded to."""
        self.wires = Wires(hypervisor)
        """What its networks lead to outside."""
        self._captures: list[Capture] = []
        self._listeners: dict[str, list[Callable[..., None]]] = {"end": [], "console_io": []}
        hypervisor.services.debug_sink = self._has_said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back all memory and threads. Guests that still live are gone."""
        if self.recording is not None:
            self.recording.close()
        if self.history is not None:
            self.history.close()
        self.wires.close()
        for capture in self._captures:
            capture.close()
        self.hypervisor.close()

    # -- guests ------------------------------------------------------------------------------------------

    def boot(
        self,
        image: Bootable,
        *,
        name: str | None = None,
        memory: str | int | None = None,
        vcpus: int = 1,
        weight: int = 256,
        cap: int = 0,
        ramdisk: str | Path | bytes | None = None,
        append: str = "",
        disks: "Sequence[str | Path | DiskSpec]" = (),
        nets: "Sequence[str | NetSpec] | None" = None,
        paused: bool = False,
    ) -> Guest:
        """Build a guest that runs when the machine does. ConfigError, ImageError.

        `image` is what `pyhv boot` takes - "debian", a guest of pyhv's, a path - or the bytes of a kernel, or
        one that was loaded before, or what `pyhv.images.source.resolve` has found. A ramdisk that is gzip is
        unpacked for the guest. `memory` is 128 MiB if it is not given, 16 MiB for pyhv's own guests. `append`
        is added to the kernel's command line. `disks` are paths, or texts as `pyhv boot --disk` takes them;
        `nets` are texts as `--net` takes them; without, it has none, but for guests of pyhv's that are about
        networks. An image that is a disk is the first of the disks, and is booted by PV-GRUB, or, with a
        ramdisk or with something to append, by its kernel at once. EnvironmentProblem: what those need
        outside is not to be had.
        """
        found = source_of(image, with_ramdisk=ramdisk is None, drivers=bool(disks or nets))
        if found.disk is not None and (append or ramdisk is not None):
            found = images.directly(found.disk)
        initial = found.ramdisk if ramdisk is None else ramdisk_of(ramdisk)
        config = DomainConfig(
            name=self._free_name(name or found.name),
            memory_pages=found.memory << 8 if memory is None else pages(memory),
            vcpus=vcpus,
            weight=weight,
            cap=cap,
            disks=disks_of(disks if found.disk is None else [found.disk, *disks]),
            nets=nets_of(nets, found),
        )
        console = Console()
        origin = found.origin
        if isinstance(ramdisk, str | Path):
            origin = replace(origin, ramdisk=str(Path(ramdisk).absolute()))
        elif ramdisk is not None:
            origin = replace(origin, ramdisk="")
        self._keep(found, image, initial, origin)
        with self.wires.opened(config.nets) as wires:
            domain = self.hypervisor.create(
                found.image,
                config,
                ramdisk=b"" if initial is None else initial.data,
                cmdline=f"{found.command_line} {append}".strip().encode("utf-8", "surrogateescape"),
                console=console,
                paused=paused,
                on_end=self.has_ended,
                origin=origin,
            )
            self.wires.plug(domain, wires)
        self.note_disks(domain)
        guest = self.take_in(domain, console, found.image.symbol_table)
        guest.origin = origin
        return guest

    def note_disks(self, domain: Domain) -> None:
        """A domain has got disks: what they are goes into a recording, which finds only the same again."""
        if self.recording is not None:
            from pyhv.api.recording import DISK

            for device in self.hypervisor.dom0.disks(domain.domid):
                for file in device.disk.identity():
                    self.recording.note(DISK, *file)

    def take_in(self, domain: Domain, console: Console, named: SymbolTable | None) -> Guest:
        """A handle for a domain that was just created, and tells its end to `has_ended`."""
        guest = self._known.get((domain.domid, domain.config.uuid)) if self.history is not None else None
        if guest is None or guest.domid in self._guests:
            uuid = domain.config.uuid
            guest = self.guest_type(self, domain.domid, domain.name, uuid, console, named=named)
        else:  # it is created again, in a run that is gone through again
            guest.begin_anew()
            self.hypervisor.dom0.console(domain.domid).log.sink = guest.console
        self._guests[guest.domid] = guest
        self._known[guest.domid, guest.uuid] = guest
        return guest

    def _keep(self, found: images.Source, image: Bootable, initial: Ramdisk | None, origin: Origin) -> None:
        """What a recording will not find again, it keeps."""
        if self.recording is not None and isinstance(image, bytes):
            self.recording.keep(found.image, image)
        if self.recording is not None and initial is not None and origin.ramdisk == "":
            self.recording.keep(None, initial.data)

    def create(self, image: Bootable, **options: Any) -> Guest:
        """`boot`, but the guest is paused until `Guest.unpause`."""
        return self.boot(image, **options, paused=True)

    @property
    def domains(self) -> Mapping[str, Guest]:
        """The guests that have not ended, by name."""
        return MappingProxyType({guest.name: guest for guest in self._guests.values()})

    @property
    def guests(self) -> list[Guest]:
        """The guests that have not ended, in the order in which they came."""
        return list(self._guests.values())

    def _find(self, domid: int) -> Guest | None:
        return self._guests.get(domid)

    def introduce_peers(self, *couples: tuple[Guest, Guest]) -> None:
        """Pair the guests, in the order of their domids: each finds the other's in data/peer of its store.

        `couples` belong together; the others are paired as before.
        """
        named = [(one.domid, other.domid) for one, other in couples]
        self.hypervisor.introduce_peers(named)

    def _free_name(self, wanted: str) -> str:
        taken = self.domains
        names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def has_ended(self, ended: Ended) -> None:
        """The hypervisor tells that a guest of this machine has ended."""
        guest = self._guests.pop(ended.domid)
        guest.end = End.of(ended)
        self._typed.pop(ended.domid, None)
        for listener in self._listeners["end"]:
            listener(guest, guest.end)

    def _has_said(self, domain: Domain, text: bytes) -> None:
        guest = self._find(domain.domid)
        with self.hypervisor.door.closed("a listener of console_io"):
            for listener in self._listeners["console_io"] if guest else []:
                listener(guest, text)

    # -- running -----------------------------------------------------------------------------------------

    @property
    def time(self) -> float:
        """Seconds of machine time since the machine was made."""
        return self.hypervisor.now() / 1e9

    def run(
        self,
        until: Until | Pattern | Callable[[], bool] | None = None,
        *,
        seconds: float | None = None,
        exits: int | None = None,
    ) -> Outcome:
        """Run the guests until all have ended, or whatever comes first of what is asked for.

        `until` is a symbol of some guest's kernel, which is about to be executed, or a regular expression
        that any guest prints, or a function that is asked between two turns of the processor; `seconds` of
        machine time; so many `exits` of guests to the hypervisor. To stop at a symbol costs the guest time.
        """
        policy: Until = _Typing(self._type) | AllEnded()
        if until is not None:
            policy = policy | self._policy(until)
        if seconds is not None:
            policy = policy | Seconds(seconds)
        if exits is not None:
            policy = policy | Exits(exits)
        if self.history is not None and self.history.future is not None:
            return self.history.run_on(policy)
        return run_wired(self.hypervisor, self.wires, policy) if self.wires else self.hypervisor.run(policy)

    def step(self, limit: int | None = None) -> bool:
        """Let one vCPU run to the end of its turn, or to `limit` (ns); False if nobody can run.

        For whoever makes the loop himself, to wait for descriptors of the host meanwhile.
        """
        self._type()
        if self.history is not None and self.history.future is not None:
            return self.history.advance(limit)
        if self.wires:
            self.wires.exchange()
            piece = self.hypervisor.now() + PIECE_NS
            limit = piece if limit is None else min(limit, piece)
        return self.hypervisor.step(limit)

    def capture(self, path: Path | str, name: str = "") -> "Capture":
        """Write down frames from now on, as pcap: all, or those of a switch or a device of that name.

        ConfigError: there is none. EnvironmentProblem: the file cannot be written.
        """
        self.hypervisor.dom0.networks.watched(name)
        capture = Capture(Path(path), self.hypervisor.now)
        self._captures.append(capture)
        self.hypervisor.dom0.networks.watch(capture.frame, name)
        return capture

    def drain(self) -> bool:
        """Offer the sinks what they have not taken yet, also of guests that have ended; whether some is left.

        While the machine runs that is done between two turns.
        """
        return self.hypervisor.dom0.go_on()

    def _policy(self, until: Until | Pattern | Callable[[], bool]) -> Until:
        if isinstance(until, Until):
            return until
        if callable(until):
            return When(until)
        if isinstance(until, str):
            named = [guest for guest in self._guests.values() if until in guest.symbols]
            if named:
                return Reaches({guest.domid: [guest.symbols[until]] for guest in named})
        wanted = expression(until)
        starts = {guest.domid: guest.console.position for guest in self._guests.values()}
        return When(
            lambda: any(
                guest.console.matches(wanted, starts.get(guest.domid, 0)) for guest in self._guests.values()
            )
        )

    @property
    def position(self) -> Position:
        """This moment of the run, exactly."""
        return self.hypervisor.position

    def _type(self) -> None:
        """Offer what was typed to the consoles that have room for it."""
        for domid, waiting in self._typed.items():
            resident = self.hypervisor.residents.get(domid)
            if waiting and resident is not None:
                del waiting[: self.hypervisor.input(resident.domain, bytes(waiting))]

    # -- recording ---------------------------------------------------------------------------------------

    def record(self, path: Path | str | None = None, *, base: "Snapshot | None" = None) -> "Recording":
        """From now on write down what the run depends on, so that `pyhv.Replay` can have it again.

        Without a path it is kept in memory, for `Recording.save`. If there are guests already, it begins with
        a snapshot, which is written beside the file: `base` if that is where the machine is right now, a new
        one if not. It ends when the machine is closed or put back. ReplayError.
        """
        from pyhv.api.recording import Recording

        if self.recording is not None and self.recording.active:
            raise ReplayError("the machine is being recorded already")
        if base is None and (self._guests or self.hypervisor.position.ticks):
            base = self.snapshot()
        self.recording = Recording(self.hypervisor, None if path is None else Path(path), base)
        return self.recording

    def gdb(self, address: str = "", guest: Guest | None = None) -> "GdbStub":
        """Serve gdb at HOST:PORT or unix:PATH (empty: loopback); guests stand still until it lets them go.

        `guest`, or the first one, is who a client is attached to that comes. ConfigError, EnvironmentProblem.
        """
        from pyhv.api.stub import GdbStub

        first = guest or next(iter(self._guests.values()), None)
        if first is None:
            raise ConfigError("There is no guest that gdb could be attached to.")
        return GdbStub(self, first, address)

    # -- going back --------------------------------------------------------------------------------------

    def keep_history(self, megabytes: int = 512) -> "History":
        """Remember the run from now on, with moments in at most so much of the host's memory. ConfigError."""
        from pyhv.api.history import History

        if self.history is None:
            self.history = History(self, megabytes)
        return self.history

    def step_back(self, granularity: "Granularity" = "exit") -> Position:
        """Be where the last "exit", or "turn", before this moment was over. ReplayError: it is forgotten.

        Or where the vCPU whose turn was the last one was about to execute its last "instruction". Handles
        stay valid. The machine runs on as it did, until something else comes in.
        """
        if granularity == "instruction":
            from pyhv.api.backwards import step_back

            return step_back(self.hypervisor, self.remembered)
        return self.remembered.step_back(granularity)

    def run_back(self, until: Position | Callable[[], bool]) -> Position:
        """Be at an earlier moment: a position, or the last one, after an exit, at which `until()` is true.

        ReplayError: there is none that is remembered.
        """
        history = self.remembered
        return history.go_to(until) if isinstance(until, Position) else history.run_back(until)

    @property
    def remembered(self) -> "History":
        """Its history. ConfigError: it has none."""
        if self.history is None:
            raise ConfigError("A machine goes back only if it was made with a history, or told to keep one.")
        return self.history

    def take_sinks(self) -> dict[Guest, ConsoleSink | None]:
        """Have guests print to their consoles alone, until the sinks are given back."""
        sinks = {guest: guest.console.sink for guest in self._known.values()}
        for guest in sinks:
            guest.console.sink = None
        return sinks

    def give_sinks(self, sinks: dict[Guest, ConsoleSink | None]) -> None:
        """Have them print there again."""
        for guest, sink in sinks.items():
            guest.console.sink = sink

    # -- moments -----------------------------------------------------------------------------------------

    def snapshot(self) -> "Snapshot":
        """The machine with all its guests as it is now. SnapshotError.

        Memory is shared with it, so that this takes as long as the pages are many that were written since
        the last time. In virtual time, what goes on from a snapshot does what the machine would have done.
        """
        from pyhv.snapshot.snapshot import take  # seldom needed, like whatever else is imported late here

        self._known.update({(guest.domid, guest.uuid): guest for guest in self.guests})
        notes = MachineNotes(
            [guest.notes() for guest in self.guests],
            {domid: bytes(waiting) for domid, waiting in self._typed.items() if waiting},
        )
        return take(self.hypervisor, state(notes), {guest.domid: guest.verdict for guest in self.guests})

    def revert(self, snapshot: "Snapshot") -> None:
        """Put the machine back to a moment of its own. SnapshotError.

        Handles stay valid: a guest that has ended since lives again, one that came later is gone.
        """
        history, self.history = self.history, None
        if history is not None:
            history.close()
        self.put_back(snapshot)
        if history is not None:
            self.keep_history()

    def put_back(self, snapshot: "Snapshot") -> None:
        """`revert`, to a moment of the history. SnapshotError."""
        notes = read_notes(snapshot)
        guests = self._handles(notes)
        if self.recording is not None:
            self.recording.close("the machine was put back")
        snapshot.put_back(self.hypervisor, lambda domid: guests[domid].console)
        self._take_over(snapshot, notes, guests)

    def fork(self) -> "Machine":
        """Another machine that goes on from here, as this one does. SnapshotError."""
        return Machine.of(self.snapshot(), tuned=self.hypervisor.config.tuned)

    @classmethod
    def of(cls, snapshot: "Snapshot", *, tuned: bool = True, measure: bool = False) -> Self:
        """A new machine that goes on from a snapshot, when it is run. SnapshotError."""
        machine = cls.__new__(cls)
        notes = read_notes(snapshot)
        guests = {one.domid: machine._new_handle(one) for one in notes.guests}
        machine._begin(snapshot.rebuild(lambda domid: guests[domid].console, tuned=tuned, measure=measure))
        machine._take_over(snapshot, notes, guests)
        return machine

    def _handles(self, notes: MachineNotes) -> dict[int, Guest]:
        """The handles, by domid, of guests to be put back: those that somebody has, or new ones."""
        known = ((one, self._known.get((one.domid, one.uuid))) for one in notes.guests)
        return {one.domid: found or self._new_handle(one) for one, found in known}

    def _new_handle(self, notes: GuestNotes) -> Guest:
        return self.guest_type(self, notes.domid, notes.name, notes.uuid, Console(), symbols=notes.symbols)

    def _take_over(self, snapshot: "Snapshot", notes: MachineNotes, guests: dict[int, Guest]) -> None:
        """The hypervisor is what it was, and prints to the consoles of `guests`: they become so too."""
        for guest in self._guests.values():
            if guests.get(guest.domid) is not guest:
                guest.end = End("undone", "the machine was put back to before it was there")
        self._guests = guests
        for one in notes.guests:
            guest = guests[one.domid]
            guest.put_back(one)
            self._known[guest.domid, guest.uuid] = guest
            self.hypervisor.residents[guest.domid].on_end = self.has_ended
        for about in snapshot.about.guests:
            if about.domid in guests:
                guests[about.domid].verdict = about.verdict
        self._typed = {domid: bytearray(waiting) for domid, waiting in notes.typed.items()}

    # -- looking on --------------------------------------------------------------------------------------

    def audit(self) -> list[str]:
        """Everything that is wrong with the machine's memory, in sentences; empty if it is sound."""
        return self.hypervisor.audit()

    @overload
    def on(self, event: Literal["exit"], listener: Callable[[ExitRecord], None]) -> Cancel: ...
    @overload
    def on(self, event: Literal["hypercall"], listener: Callable[[HypercallMade], None]) -> Cancel: ...
    @overload
    def on(self, event: Literal["end"], listener: Callable[[Guest, End], None]) -> Cancel: ...
    @overload
    def on(self, event: Literal["console_io"], listener: Callable[[Guest, bytes], None]) -> Cancel: ...
    def on(self, event: str, listener: Callable[..., None]) -> Cancel:
        """Call `listener` at every "exit" or "hypercall", before it is handled, or at the "end" of a guest.

        "console_io" is what it writes to the hypervisor's own console, where an early panic is found.
        What guests compute is not changed by being looked at. Hypercalls within a multicall are not told.
        The function that is returned ends it. ConfigError: no such event.
        """
        if event in self._listeners:
            self._listeners[event].append(listener)
            return lambda: self._listeners[event].remove(listener)
        if event not in ("exit", "hypercall"):
            raise ConfigError(f"There is no event {event!r}; there are exit, hypercall, end and console_io.")
        observer = ExitListener(listener) if event == "exit" else HypercallListener(listener, self._find)
        self.hypervisor.observe(observer)
        return lambda: self.hypervisor.unobserve(observer)

    # -- what guests ask of their machine ----------------------------------------------------------------

    def resident(self, guest: Guest) -> Resident | None:
        """The hypervisor's record of a guest that has not ended."""
        return self.hypervisor.residents.get(guest.domid) if guest.end is None else None

    def type_in(self, guest: Guest, data: bytes) -> None:
        """Bytes for a guest's console, which come when it has room for them."""
        if guest.end is None:
            self._typed.setdefault(guest.domid, bytearray()).extend(data)

    def offer(self, guest: Guest, data: bytes) -> int:
        """As many of these bytes for a guest's console as it has room for; one that has ended takes all."""
        self._type()
        resident = self.resident(guest)
        if resident is None:
            return len(data)
        return 0 if self._typed.get(guest.domid) else self.hypervisor.input(resident.domain, data)


def load(path: Path | str, *, tuned: bool = True) -> Machine:
    """A machine that goes on from a snapshot's file. SnapshotError."""
    from pyhv.snapshot.snapshot import Snapshot

    return Machine.of(Snapshot.load(path), tuned=tuned)


class _Typing(Until):
    """No reason to stop: it types between two turns what waits to be typed."""

    def __init__(self, type_in: Callable[[], None]) -> None:
        self._type_in = type_in

    def outcome(self, _machine: Runnable) -> Outcome | None:
        self._type_in()
        return None
