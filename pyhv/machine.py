# SPDX-License-Identifier: GPL-2.0-only
"""The machine: RAM, time, the domains on it, and the one loop that runs them.

    while somebody is alive:
        let timers fire                       sleepers wake
        ask the scheduler who runs            nobody? let time pass until something is due
        load that vCPU and run its engine     exits are handled inside (`traps/dispatch.py`)
        charge it, and see why it came back

Everything that happens to a domain from outside - input, timers, a peer's events - happens between two turns
of this loop or inside an exit of the domain that causes it, so that one lock is enough: the thread that is
here. No state lives outside the `Machine`.
"""

import enum
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pyhv.abi.numbers import VcpuState, Virq
from pyhv.board import Board
from pyhv.cpu.engine import ExitSink
from pyhv.devices.wiring import ConsoleSink
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.domain.holdings import holdings
from pyhv.domain.vcpu import Vcpu
from pyhv.domain_builder import DomainBuilder
from pyhv.errors import ConfigError, GuestCrash
from pyhv.events.channels import EventChannels
from pyhv.events.delivery import Unshared
from pyhv.hypercalls.vcpu import write_runstate
from pyhv.loader.image import KernelImage
from pyhv.mmu.audit import audit
from pyhv.resident import Residents
from pyhv.sched import SCHEDULERS
from pyhv.sched.base import Scheduler
from pyhv.services import Services
from pyhv.traps.dispatch import Dispatcher, Observer
from pyhv.traps.stopwatch import Stopwatch
from pyhv.undertaker import take_apart
from pyhv.xenstore.domu import request_shutdown
from pyhv.xenstore.store import Store

_TIME_REFRESH_NS: Final = 100_000_000
_INPUT_LOOK_NS: Final = 5_000_000
_LONGEST_TURN_NS: Final = 30_000_000


@dataclass(frozen=True, slots=True)
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
    seed: int = 0
    measure: bool = False
    tuned: bool = True


class InputSource(Protocol):
    """Something that brings console input."""

    def fileno(self) -> int:
        """What to wait on."""

    def pump(self) -> bool:
        """It is readable: feed it to the guest. False at end of file: it is asked no more."""


class Outcome(enum.Enum):
    """Why `Machine.run` came back."""

    ENDED = "all domains have ended"
    DEADLOCK = "every vCPU is blocked and nothing is due"
    TIMEOUT = "the time budget is spent"
    STOPPED = "asked to stop"


class Machine:
    """One computer without a guest yet. `create` domains, `run`, `close`."""

    def __init__(self, config: MachineConfig) -> None:
        scheduler = config.scheduler
        if isinstance(scheduler, str):
            if scheduler not in SCHEDULERS:
                raise ConfigError(
                    f"There is no scheduler '{scheduler}'; choose one of {', '.join(SCHEDULERS)}."
                )
            scheduler = SCHEDULERS[scheduler]()
        self.config = config
        self.board = board = Board(config.memory_pages, virtual_time=config.virtual_time, tuned=config.tuned)
        board.on_free = self._frame_freed
        self.ram, self.frames, self.physical = board.ram, board.frames, board.physical
        self.clock = board.clock
        self.scheduler = scheduler
        self.store = Store()
        self.residents = Residents()
        self.services = Services(board, self.scheduler, self.residents)
        self.dom0 = self.residents.dom0 = EventChannels(
            0, 1, lookup=self.residents.channels, pending=Unshared(), wake=lambda _vcpu: None,
            port_became_pending=lambda _port: None, privileged=True, max_port=4095,
        )  # fmt: skip
        self.stopwatch = Stopwatch()
        self.engine_ns = 0
        """Host ns spent inside engines, handlers included."""
        self._observers: list[Observer] = []
        self._builder = DomainBuilder(
            board, self.services, self.residents, self.store, sink_for=self._sink_for, seed=config.seed
        )

    # -- domains -----------------------------------------------------------------------------------------

    def create(
        self,
        image: KernelImage,
        config: DomainConfig,
        *,
        ramdisk: bytes = b"",
        cmdline: bytes = b"",
        console: ConsoleSink,
    ) -> Domain:
        """Build a domain and make its first vCPU runnable. ConfigError, ImageError.

        The guest gets `ramdisk` as it is; `pyhv.loader.ramdisk` unpacks what Xen's toolstack would.
        """
        resident = self._builder.build(len(self.residents) + 1, image, config, ramdisk, cmdline, console)
        resident.dispatcher.observers = self._observers
        domain = resident.domain
        for vcpu in domain.vcpus:
            self.scheduler.add(vcpu)
        self.services.start_vcpu(domain.vcpus[0])
        return domain

    def observe(self, observer: Observer) -> None:
        """Show every exit of every domain to `observer`."""
        self._observers.append(observer)

    def introduce_peers(self, *couples: tuple[Domain, Domain]) -> None:
        """Pair the domains and tell each its peer's domid, in `data/peer` of its store directory.

        `couples` belong together; the others are paired in order, and an odd one out is its own peer.
        """
        pairs = [(one.domid, other.domid) for one, other in couples]
        taken = {domid for pair in pairs for domid in pair}
        everybody = sorted(resident.domain.domid for resident in self.residents)
        rest = [domid for domid in everybody if domid not in taken]
        pairs += zip(rest[::2], rest[1::2], strict=False)
        if len(rest) % 2:
            pairs.append((rest[-1], rest[-1]))
        for one, other in pairs:
            for domid, peer in ((one, other), (other, one)):
                path = f"/local/domain/{domid}/data/peer"
                self.store.write(path, peer)
                self.store.set_permissions(path, ["n0", f"r{domid}"])

    def feed(self, domain: Domain, data: bytes) -> int:
        """Offer console input; returns how many bytes the guest's ring took."""
        if not domain.alive:
            return len(data)
        return self.residents[domain.domid].wiring.console.feed(data)

    def request_shutdown(self, domain: Domain, how: str) -> None:
        """Ask a guest to "poweroff", "reboot", "halt" or "suspend" itself."""
        request_shutdown(self.store, domain.domid, how)

    def resume(self, domain: Domain, *, cancelled: bool) -> None:
        """Let a suspended domain run on: its call returns 1 if the suspension was `cancelled`, else 0.

        After 0 a guest expects what a restored one finds: fresh event channels and grant tables, and machine
        addresses in its start_info. To provide them is up to the caller. ConfigError: it is not suspended.
        """
        self.services.resume(domain, cancelled=cancelled)

    def now(self) -> int:
        """System time in ns."""
        return self.clock.now()

    def _sink_for(self, dispatcher: Dispatcher) -> ExitSink:
        """The exit sink for an engine: the dispatcher, timed if the machine measures."""
        return self.stopwatch.around(dispatcher) if self.config.measure else dispatcher

    @property
    def guest_ns(self) -> int:
        """Host ns in guest code: engine time without handlers (only if `measure`)."""
        return self.engine_ns - self.stopwatch.spent_ns

    def audit(self) -> list[str]:
        """Everything that is wrong with the machine's memory; empty if it is sound. Not while it runs."""
        there = [resident for resident in self.residents if not resident.buried]
        rings = [mfn for resident in there for mfn in resident.wiring.rings]
        domains = [resident.domain for resident in there]
        return audit(self.frames, self.ram, map(holdings, domains), m2p=self.board.m2p, rings=rings)

    def _frame_freed(self, mfn: int, owner: int) -> None:
        """A domain loses a frame: it has one less, and no stale translation may lead there."""
        domain = self.residents.any_domain(owner)
        if domain is not None:
            if not self.frames.xen_heap[mfn]:
                domain.tot_pages -= 1
            if domain.tables.stale:
                domain.tables.flush = True

    # -- the loop ----------------------------------------------------------------------------------------

    def run(
        self,
        *,
        timeout_ns: int | None = None,
        inputs: Sequence[InputSource] = (),
        stop: Callable[[], bool] | None = None,
    ) -> Outcome:
        """Run until all domains have ended or are suspended, or nothing can ever happen again, or
        `timeout_ns` of machine time have passed, or `stop` says so."""
        sources = list(inputs)
        limit = None if timeout_ns is None else self.clock.now() + timeout_ns
        next_look = 0
        while True:
            now = self.clock.now()
            self.services.expire(now)
            self._bury_the_dead()
            if all(not resident.domain.alive for resident in self.residents):
                return Outcome.ENDED
            if limit is not None and now >= limit:
                return Outcome.TIMEOUT
            if stop is not None and stop():
                return Outcome.STOPPED
            if sources and now >= next_look:
                next_look = now + _INPUT_LOOK_NS
                self._take_input(sources, 0.0)
            decision = self.scheduler.pick(now)
            if decision.vcpu is not None:
                self._turn(self._vcpu(decision.vcpu.id), decision.slice_ns, limit)
            elif not self._idle(now, limit, sources):
                return Outcome.DEADLOCK

    def _vcpu(self, name: tuple[int, int]) -> Vcpu:
        return self.residents[name[0]].domain.vcpus[name[1]]

    def _turn(self, vcpu: Vcpu, slice_ns: int, limit: int | None) -> None:
        """Let one vCPU run until its slice or the next deadline ends, or it leaves by itself."""
        resident = self.residents[vcpu.domid]
        domain = resident.domain
        dispatcher = resident.dispatcher
        start = self.clock.now()
        domain.tables.code.tidy()
        if self.physical.shared_code:
            self.physical.renew_shared()
        dispatcher.load(vcpu)
        self.services.running = vcpu
        vcpu.runstate.change(VcpuState.RUNNING, start)
        if vcpu.periodic.due(start):
            domain.events.raise_virq(Virq.TIMER, vcpu.number)
        if start - vcpu.time_stamp >= _TIME_REFRESH_NS or vcpu.time_stamp < 0:
            self._write_areas(vcpu, start)
        deadline = start + min(slice_ns, _LONGEST_TURN_NS)
        for due in (self.services.timers.next_deadline(), vcpu.periodic.next_deadline(), limit):
            if due is not None:
                deadline = min(deadline, due)
        dispatcher.call.reschedule = False
        dispatcher.enter()
        if not dispatcher.call.reschedule:
            engine = domain.engine
            began = time.perf_counter_ns()
            self.clock.begin(engine, max(deadline, start + 1))
            try:
                engine.run()
            except GuestCrash as fatal:
                self.services.crash(domain, fatal.why)
            finally:
                self.clock.end()
                self.engine_ns += time.perf_counter_ns() - began
        end = self.clock.now()
        self.services.running = None
        if vcpu.runstate_area:
            self._write_areas(vcpu, end)
        self.scheduler.charge(vcpu, end - start, end)
        if vcpu.online:
            ready = VcpuState.RUNNABLE if domain.alive else VcpuState.OFFLINE
            vcpu.runstate.change(VcpuState.BLOCKED if vcpu.blocked else ready, end)
        if vcpu.blocked or not vcpu.online or not domain.alive:
            self.scheduler.sleep(vcpu, end)
        resident.wiring.settle(vcpu.polling)

    def _write_areas(self, vcpu: Vcpu, now: int) -> None:
        """Refresh what the guest reads of its time and runstate."""
        vcpu.update_time()
        write_runstate(vcpu, now)

    def _idle(self, now: int, limit: int | None, sources: list[InputSource]) -> bool:
        """Nobody can run: let time pass. False if nothing will ever happen again."""
        due = [self.services.timers.next_deadline(), self.scheduler.next_event(now)]
        waiting = [when for when in due if when is not None]
        if not waiting and not sources:
            return False
        if limit is not None:
            waiting.append(limit)
        until = max(min(waiting), now) if waiting else None
        if self.clock.deterministic:
            if until is not None:
                if sources:
                    self._take_input(sources, 0.0)
                self.clock.advance_to(until)
            else:
                self._take_input(sources, None)
        elif sources:
            self._take_input(sources, None if until is None else max(until - now, 0) / 1e9)
        elif until is not None:
            self.clock.advance_to(until)
        return True

    def _take_input(self, sources: list[InputSource], wait: float | None) -> None:
        """Let readable sources feed their guests; `wait` in seconds, None for as long as it takes."""
        ready, _, _ = select.select(sources, [], [], wait)
        for source in ready:
            if not source.pump():
                sources.remove(source)

    def _bury_the_dead(self) -> None:
        for resident in self.residents:
            domain = resident.domain
            if not domain.alive and not domain.suspended and not resident.buried:
                resident.wiring.console_event()
                resident.wiring.settle()
                self.services.forget(domain)
                take_apart(self.board, resident, self.residents, self.store)
                resident.buried = True

    def close(self) -> None:
        """Free engines and threads. Domains that still live are gone with their memory."""
        for resident in self.residents:
            if not resident.buried:
                resident.domain.engine.close()
        self.board.close()
        for resident in self.residents:
            resident.wiring.flush()  # something is left where an exception has ended a turn
