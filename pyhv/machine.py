# SPDX-License-Identifier: GPL-2.0-only
"""The machine: RAM, time, the domains on it, and the one loop that runs them.

    until it is to stop (`until.py`):
        let timers fire, take the dead apart  sleepers wake
        ask the scheduler who runs            nobody? let time pass until something is due
        load that vCPU and run its engine     exits are handled inside (`traps/dispatch.py`)
        charge it, and see why it came back

`step` is one turn of that. Whoever has descriptors of the host to wait for makes the loop himself, of `step`,
`next_deadline` and `advance_to`.

Everything that happens to a domain from outside - input, timers, a peer's events - happens between two turns
of this loop or inside an exit of the domain that causes it, so that one lock is enough: the thread that is
here. No state lives outside the `Machine`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import ClassVar

from pyhv.address import MASK32, MASK64, is_canonical
from pyhv.board import USUAL_DOMAINS, Board
from pyhv.clock import BIRTHDAY
from pyhv.cpu.engine import ExitSink
from pyhv.cpu.registers import Registers
from pyhv.cpu.vmcb import GENERAL_NAMES
from pyhv.debugger import Debugger
from pyhv.devices.console_log import ConsoleSink
from pyhv.devices.toolstack import ToolstackDomain
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.domain.holdings import holdings, mapped_grants
from pyhv.domain.lifecycle import Lifecycle
from pyhv.domain.relations import relations
from pyhv.domain_builder import DomainBuilder, check
from pyhv.errors import ConfigError
from pyhv.events.timers import TimerQueue
from pyhv.frozen import frozen
from pyhv.lane import require as require_lane
from pyhv.loader.image import KernelImage
from pyhv.loader.origin import Origin
from pyhv.mmu.audit import audit
from pyhv.outside import Door, Position, Where, from_outside
from pyhv.paced import LAG_NS, PacedClock
from pyhv.pcpu import Pcpu
from pyhv.plugging import Plugging, check_stage
from pyhv.resident import Ended, Resident, Residents
from pyhv.sched import SCHEDULERS
from pyhv.sched.base import SchedParameters, Scheduler
from pyhv.services import Services, TimerKey
from pyhv.traps.dispatch import Dispatcher, Observer
from pyhv.traps.guestcpu import IRET_FLAGS
from pyhv.traps.stopwatch import Stopwatch
from pyhv.undertaker import take_apart
from pyhv.until import AllEnded, Nanoseconds, Outcome, Until
from pyhv.xenstore.domu import change_uuid, request_shutdown
from pyhv.xenstore.limits import StoreError
from pyhv.xenstore.peers import introduce_peers


@frozen
class MachineConfig:
    """A machine: `memory_pages` for the guests together, how time passes, and the scheduler.

    `scheduler` is a name of `pyhv.sched.SCHEDULERS`, or one that was made for this machine alone.

    `seed` is the source of all chance (identifiers today). `measure` times handlers for the statistics.
    `tuned` changes the emulator's hot paths where that is proven to be right (`cpu/tuning/`); what guests
    compute is the same without, but for code that is overwritten through another page than it runs from, and
    for flags and corners of floating point (docs/cpu.md).
    """

    memory_pages: int
    scheduler: str | Scheduler = "credit"
    virtual_time: bool = False
    paced: bool = False
    """Real time that is counted (`paced.py`), so that the run can be had again."""
    seed: int = 0
    measure: bool = False
    tuned: bool = True
    wall_ns: int = BIRTHDAY
    """Virtual time: UTC at its beginning, in ns since 1970."""
    max_domains: int = USUAL_DOMAINS
    """How many domains at once Xen's own frames are to suffice for."""


class Machine(Plugging):
    """One computer without a guest yet. `create` domains, `run`, `close`."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            (
                "config",
                "board",
                "ram",
                "frames",
                "physical",
                "clock",
                "scheduler",
                "residents",
                "dom0",
                "store",
                "services",
                "pcpu",
            ),
            "said by `snapshot/whole.py`, each as its part",
        ),
        "stopwatch": "the host's time",
        **dict.fromkeys(("door", "_observers", "debugger"), "whoever listens"),
        "ending": "None while it can be said",
        "paced": "the clock",
        "_idle": "asked anew",
        "builder": "has no state",
    }

    def __init__(self, config: MachineConfig) -> None:
        require_lane()
        scheduler = config.scheduler
        if isinstance(scheduler, str):
            if scheduler not in SCHEDULERS:
                raise ConfigError(
                    f"There is no scheduler '{scheduler}'; choose one of {', '.join(SCHEDULERS)}."
                )
            scheduler = SCHEDULERS[scheduler]()
        self.config = config
        self.board = board = Board(
            config.memory_pages,
            max_domains=config.max_domains,
            virtual_time=config.virtual_time,
            paced=config.paced,
            tuned=config.tuned,
            wall_ns=config.wall_ns,
        )
        board.on_free = self._frame_freed
        self.ram, self.frames, self.physical = board.ram, board.frames, board.physical
        self.clock = board.clock
        self.scheduler = scheduler
        self.residents = Residents(lambda domid: bool(self.frames.owned_by(domid).size))
        self.dom0 = ToolstackDomain(
            self.physical, self.clock, self.residents.channels, self.residents.grants, config.seed
        )
        self.residents.dom0 = self.dom0.channels
        self.store = self.dom0.store
        timers: TimerQueue[TimerKey] = TimerQueue(TimerKey)
        self.pcpu = Pcpu(board, scheduler, self.dom0, timers.next_deadline)
        """The one processor that there is."""
        self.services = Services(board, scheduler, self.residents, self.dom0, timers, [self.pcpu])
        self.stopwatch = Stopwatch()
        self.door = Door()
        """Through which all comes in that the run depends on."""
        self._idle = False
        """Whether, since all was done that is due, nobody could run."""
        self.paced = board.clock if isinstance(board.clock, PacedClock) else None
        """The clock, while its time goes with the host's."""
        self.ending: int | None = None
        """The domid of a domain of whose end somebody is being told."""
        self._observers: list[Observer] = []
        self.debugger: Debugger | None = None
        """Who decides whether turns go on, while there is one."""
        self.builder = DomainBuilder(
            board, self.services, self.residents, self.dom0, sink_for=self._sink_for, seed=config.seed
        )

    # -- domains -----------------------------------------------------------------------------------------

    @from_outside
    def create(
        self,
        image: KernelImage,
        config: DomainConfig,
        *,
        ramdisk: bytes = b"",
        cmdline: bytes = b"",
        console: ConsoleSink,
        paused: bool = False,
        on_end: Callable[[Ended], None] = lambda _ended: None,
        origin: Origin | None = None,
    ) -> Domain:
        """Build a domain and, unless it is to be `paused`, make its first vCPU runnable.

        ConfigError, ImageError: it cannot be, and nothing has changed. The guest gets `ramdisk` as it is;
        `pyhv.loader.ramdisk` unpacks what Xen's toolstack would. `on_end` gets what is left of it when it
        has ended: the machine keeps nothing. `origin` is where the image was found, for a recording.
        """
        resident = self.builder.build(image, config, ramdisk, cmdline, console)
        self.show_exits_of(resident)
        resident.on_end = on_end
        domain = resident.domain
        self.services.start_vcpu(domain.vcpus[0])
        if not paused:
            self.unpause(domain)
        return domain

    @from_outside
    def pause(self, domain: Domain) -> None:
        """Keep a running domain from running. ConfigError: it does not run."""
        check_stage(domain, "paused", Lifecycle.RUNNING)
        self.services.pause(domain)

    @from_outside
    def unpause(self, domain: Domain) -> None:
        """Let a paused domain run. ConfigError: it is not paused."""
        check_stage(domain, "unpaused", Lifecycle.PAUSED)
        self.services.unpause(domain)

    @from_outside
    def resume(self, domain: Domain, *, cancelled: bool) -> None:
        """Let a suspended domain run on: its call returns 1 if the suspension was `cancelled`, else 0.

        After 0 a guest expects what a restored one finds: fresh event channels and grant tables, and machine
        addresses in its start_info. To provide them is up to the caller. ConfigError: it is not suspended.
        """
        check_stage(domain, "resumed", Lifecycle.SUSPENDED)
        self.services.resume(domain, cancelled=cancelled)

    @from_outside
    def shutdown(self, domain: Domain, how: str = "poweroff") -> None:
        """Ask a guest to "poweroff", "reboot", "halt" or "suspend" itself, which it may do or not."""
        request_shutdown(self.store, domain.domid, how)

    @from_outside
    def change_uuid(self, domain: Domain, new: str) -> None:
        """Have a domain known by another UUID. ConfigError: it is none, or another domain's."""
        config = replace(domain.config, uuid=new)
        check(config, self.scheduler)
        domain.config = replace(config, uuid=self.builder.uuid_for(config, domain.domid))
        change_uuid(self.store, domain.domid, domain.name, domain.config.uuid)

    @from_outside
    def destroy(self, domain: Domain) -> None:
        """End a domain, whatever it does; it is gone before anybody runs again. ConfigError: it has ended."""
        alive = Lifecycle.RUNNING, Lifecycle.PAUSED, Lifecycle.SUSPENDED
        check_stage(domain, "destroyed", *alive)
        domain.life.destroy()
        self.services.leave_processor(domain)

    @from_outside
    def adjust(self, domain: Domain, *, weight: int | None = None, cap: int | None = None) -> None:
        """Change a living domain's share of the processors. ConfigError: out of range, or it has ended."""
        stages = Lifecycle.RUNNING, Lifecycle.PAUSED, Lifecycle.SUSPENDED
        check_stage(domain, "adjusted", *stages)
        old = self.scheduler.parameters(domain.domid)
        new = SchedParameters(old.weight if weight is None else weight, old.cap if cap is None else cap)
        self.scheduler.adjust(domain.domid, new)

    def show_exits_of(self, resident: Resident) -> None:
        """A domain is new here: observers see its exits."""
        resident.dispatcher.observers = self._observers

    def observe(self, observer: Observer) -> None:
        """Show every exit of every domain to `observer`."""
        self._observers.append(observer)

    def take_observers(self) -> list[Observer]:
        """Show exits to nobody, until those who saw them are given back."""
        taken = list(self._observers)
        self._observers.clear()
        return taken

    def give_observers(self, observers: list[Observer]) -> None:
        """Show exits to them again."""
        self._observers[:] = observers

    def unobserve(self, observer: Observer) -> None:
        """No longer show exits to `observer`."""
        self._observers.remove(observer)

    @from_outside
    def input(self, domain: Domain, data: bytes) -> int:
        """What is typed on a domain's console; returns how many bytes it had room for. Offer the rest later.

        All input comes in here, at the present machine time. For a domain that is paused or suspended it
        waits in the ring; one that has ended takes all, and reads none.
        """
        if not (domain.alive or domain.suspended):
            return len(data)
        return self.dom0.console(domain.domid).input(data)

    @from_outside
    def poke(self, address: int, data: bytes) -> None:
        """Store bytes at a machine address, within a frame, as a debugger does; guests are not asked."""
        self.physical.write(address, data)

    @from_outside
    def set_registers(self, domain: Domain, vcpu: int, registers: Registers) -> None:
        """Have a vCPU that has been started go on with these registers, as a debugger does.

        Selectors, privilege and what the hypervisor keeps in flags stay as they are. ConfigError: there is no
        such vCPU, or an address is not canonical.
        """
        found = domain.vcpus[vcpu] if vcpu < len(domain.vcpus) else None
        if found is None or found.context.empty:
            raise ConfigError(f"{domain.name} has no vCPU {vcpu} that has been started.")
        wanted = found.context.registers
        for address in (registers.rip, registers.fs.base, registers.gs.base):
            if not is_canonical(address):
                raise ConfigError(f"{address:#x} is no canonical address.")
        mask = MASK64 if domain.width == 64 else MASK32
        for name in (*GENERAL_NAMES, "rip"):
            setattr(wanted, name, getattr(registers, name) & mask)
        wanted.rflags = wanted.rflags & ~IRET_FLAGS | registers.rflags & IRET_FLAGS
        wanted.fs.base, wanted.gs.base = registers.fs.base, registers.gs.base
        wanted.fpu = registers.fpu
        found.context.registers = wanted

    @from_outside
    def write_store(self, path: str, value: bytes) -> None:
        """Write a node of the store, as domain 0 does. ConfigError: it cannot be written."""
        try:
            self.store.write(path, value)
        except StoreError as refusal:
            raise ConfigError(f"{path!r} cannot be written in the store: {refusal.why}.") from refusal

    @from_outside
    def introduce_peers(self, couples: Collection[tuple[int, int]] = ()) -> None:
        """Pair the domains: each may read the other's domid. `couples`, of domids, belong together."""
        introduce_peers(self.store, self.residents.domids(), couples)

    @from_outside
    def stop_at(self, domain: Domain, addresses: Collection[int], arrived: Callable[[int], None]) -> None:
        """Call `arrived` before a vCPU of a domain executes an instruction at one of these addresses.

        They are linear ones, and take the place of those that were asked for before. The guest does not see
        it, but it costs time: two exits each.
        """
        self.residents[domain.domid].dispatcher.breakpoints.stop_at(addresses, arrived)

    def came_in(self) -> None:
        """A command has taken effect: if that was in an exit, its guest feels it when that is done."""
        if self.pcpu.executing:
            self.interrupt()

    @property
    def position(self) -> Position:
        """This moment of the run; its exits and turns count from when the machine was made."""
        pcpu = self.pcpu
        where = Where.INSIDE if pcpu.executing else Where.RESTING
        if self.ending is not None:
            where = Where.ENDING
        exits = sum(sum(resident.dispatcher.counts) for resident in self.residents)
        return Position(
            pcpu.turns, pcpu.turn is None, pcpu.ticks, exits + sum(self.residents.past.exits), where
        )

    @from_outside
    def pass_time(self, when: int) -> None:
        """It is `when` (ns) now, if it is not later: a paused turn has had that time, or all were idle."""
        if self.pcpu.turn is None:
            self.clock.advance_to(when)
        else:
            self.clock.work(max(when - self.clock.now(), 0))

    def now(self) -> int:
        """System time in ns."""
        return self.clock.now()

    def _sink_for(self, dispatcher: Dispatcher) -> ExitSink:
        """The exit sink for an engine: the dispatcher, timed if the machine measures."""
        return self.stopwatch.around(dispatcher) if self.config.measure else dispatcher

    @property
    def guest_ns(self) -> int:
        """Host ns in guest code: engine time without handlers (only if `measure`)."""
        return self.pcpu.engine_ns - self.stopwatch.spent_ns

    def debug(self) -> Debugger:
        """Let somebody decide, from now on, whether turns go on. ConfigError: somebody does."""
        if self.debugger is not None:
            raise ConfigError("The machine has a debugger already.")
        self.debugger = Debugger(self.pcpu, self.scheduler, self.residents, self.clock, lambda: self.position)
        return self.debugger

    def put_debugger(self, debugger: Debugger | None) -> Debugger | None:
        """Have another debugger, or none, decide for a while; returns the one that did."""
        if self.debugger is not None:
            self.debugger.disarm()
        before, self.debugger = self.debugger, debugger
        return before

    def end_debugging(self) -> None:
        """There is no debugger any more."""
        if self.debugger is not None:
            self.debugger.close()
            self.debugger = None

    def audit(self) -> list[str]:
        """Everything that is wrong with memory and accounts; empty if they are sound. Not while it runs."""
        rings = [mfn for domid in self.residents.domids() for mfn in self.dom0.frames(domid)]
        held = [holdings(resident.domain) for resident in self.residents]
        borrowed = self.dom0.borrower.maptrack
        findings = audit(
            self.frames, self.ram, held, m2p=self.board.m2p, rings=rings, loans=mapped_grants(borrowed)
        )
        findings += self.board.audit()
        domains = [resident.domain for resident in self.residents]
        return findings + relations(domains, self.dom0.channels, borrowed)

    def _frame_freed(self, mfn: int, owner: int) -> None:
        """A domain loses a frame: it has one less, and no stale translation may lead there."""
        domain = self.residents.any_domain(owner)
        if domain is not None:
            if not self.frames.xen_heap[mfn]:
                domain.tot_pages -= 1
            if domain.tables.stale:
                domain.mailbox.do(domain.flush_tlb)

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self, until: Until | None = None, *, timeout_ns: int | None = None) -> Outcome:
        """Run until all domains have ended, or `until` says so, or nothing can ever happen again.

        `timeout_ns` bounds the machine time, whatever the policy.
        """
        until = until or AllEnded()
        if timeout_ns is not None:
            until |= Nanoseconds(timeout_ns)
        until.begin(self)
        try:
            while True:
                self.settle()
                if self.debugger is not None and self.debugger.stop is not None:
                    return Outcome.STOPPED
                outcome = until.outcome(self)
                if outcome is not None:
                    return outcome
                limit = until.limit()
                if not self._run_somebody(limit):
                    due = self.next_deadline()
                    if due is None:
                        return Outcome.DEADLOCK
                    self.advance_to(due if limit is None else min(due, limit))
        finally:
            until.end(self)

    def step(self, limit: int | None = None) -> bool:
        """Do what is due, and let one vCPU run, to the end of its turn or to `limit` (ns).

        False if nobody can run: then let time pass until `next_deadline`, or until something comes from
        outside.
        """
        self.settle()
        return self._run_somebody(limit)

    def settle(self) -> None:
        """Do what is due: timers fire, and domains that have ended are taken apart."""
        if self.paced is not None:
            self._keep_pace(self.paced, 0 if self._idle else LAG_NS)
        self._idle = False
        now = self.clock.now()
        self.services.expire(now)
        self.dom0.expire(now)
        self.dom0.go_on()
        self._reap()
        self.door.rest()

    def _keep_pace(self, clock: PacedClock, lag: int) -> None:
        """Pull time towards the host's, if it is behind by more than `lag` (ns)."""
        host = clock.host_now()
        if host > clock.now() + lag:
            self.pass_time(host)

    def keep_pace(self, on: bool) -> None:
        """Whether time goes with the host's, where it does: not while a run is gone through again."""
        clock = self.clock
        self.paced = clock if on and isinstance(clock, PacedClock) else None
        if self.paced is not None:
            self.paced.go_with_host()

    def next_deadline(self) -> int | None:
        """When something will happen by itself although nobody runs (ns); None: never."""
        due = (
            self.services.timers.next_deadline(),
            self.dom0.next_deadline(),
            self.scheduler.next_event(self.clock.now()),
        )
        return min((when for when in due if when is not None), default=None)

    def advance_to(self, when: int) -> None:
        """Nobody can run: let time pass until `when` (ns), which virtual time does at once."""
        if self.paced is not None:
            self.paced.sleep_until(when)
            self._keep_pace(self.paced, 0)
            return
        if self.door.listeners and self.clock.deterministic:
            due = self.next_deadline()
            if due is None or when > due or not (self._idle and self.door.settled):
                self.pass_time(when)  # the machine itself would have done something else
        self.clock.advance_to(when)
        self.door.settled = False

    def interrupt(self) -> None:
        """Come back from the turn that is running, when its present exit is done; `step` goes on with it.

        May be called by observers. In virtual time the guest does what it would have done uninterrupted.
        """
        self.pcpu.interrupt()

    def _run_somebody(self, limit: int | None) -> bool:
        """One turn, or the rest of one that was paused, or a piece of that. False: nobody can run."""
        paced = self.paced
        if paced is None:
            return self._run_turn(limit)
        piece = paced.piece()
        somebody = self._run_turn(piece if limit is None else min(limit, piece))
        paced.piece_is_over()
        return somebody

    def _run_turn(self, limit: int | None) -> bool:
        if self.debugger is not None:
            return self._run_debugged_turn(self.debugger, limit)
        pcpu = self.pcpu
        if pcpu.turn is None:
            decision = self.scheduler.pick(self.clock.now())
            if decision.vcpu is None:
                self._idle = True
                return False
            self.door.settled = False
            domid, number = decision.vcpu.id
            resident = self.residents[domid]
            pcpu.begin(resident, resident.domain.vcpus[number], decision.slice_ns, limit)
        else:
            self.door.settled = False
            pcpu.go_on(limit)
        return True

    def _run_debugged_turn(self, debugger: Debugger, limit: int | None) -> bool:
        if debugger.stop is not None:
            return True
        somebody = debugger.turn(limit)
        self._idle = not somebody
        if somebody:
            self.door.settled = False
        return somebody

    def has_reached(self, when: int) -> bool:
        """Whether it has run up to a time (ns): not to the very nanosecond, for code comes in blocks."""
        return self.pcpu.has_reached(when)

    def _reap(self) -> None:
        """Take domains apart that have ended: nothing of them is left here."""
        for resident in [one for one in self.residents if one.domain.life.stage is Lifecycle.DYING]:
            if self.pcpu.turn is not None and self.pcpu.turn.resident is resident:
                self.pcpu.end()
            if self.debugger is not None and self.debugger.keeps(resident):
                continue
            domid = resident.domain.domid
            self.dom0.last_words(domid)
            self.dom0.turn_ended(domid, None)
            self.services.forget(resident.domain)
            take_apart(self.board, resident, self.residents, self.dom0)
            resident.domain.life.become(Lifecycle.DEAD)
            self.residents.remove(resident)
            self.residents.past.add(resident.counts())
            self.ending = domid
            try:
                resident.on_end(resident.ended())
            finally:
                self.ending = None
            if self.debugger is not None:
                self.debugger.has_ended(resident)

    def close(self) -> None:
        """Free engines and threads. Domains that still live are gone with their memory."""
        for resident in self.residents:
            resident.domain.engine.close()
        self.board.close()
        self.dom0.close()  # something may be left to print where an exception has ended a turn
