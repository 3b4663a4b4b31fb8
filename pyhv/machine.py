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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pyhv.abi.numbers import Shutdown, Virq
from pyhv.abi.x86 import RESERVED_DESCRIPTORS, RESERVED_DESCRIPTORS_COMPAT
from pyhv.address import Mfn
from pyhv.assemble import ConsoleSink, Wiring, build_domain, prepare_vcpu, take_apart
from pyhv.clock import Clock, RealClock, VirtualClock
from pyhv.cpu import vmcb as v
from pyhv.cpu.engine import ExitSink, can_stop_at_any_time
from pyhv.cpu.ram import Ram
from pyhv.cpu.selftest import self_test
from pyhv.cpu.tsc import host_tsc
from pyhv.cpu.tuning.gate import tuning
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import ConfigError, GuestCrash
from pyhv.events.channels import EventChannels
from pyhv.events.delivery import Unshared
from pyhv.events.timers import TimerQueue
from pyhv.hypercalls.vcpu import write_runstate
from pyhv.loader.image import KernelImage
from pyhv.mmu.audit import audit
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.memory import PhysicalMemory
from pyhv.mmu.paging import MachineToPhysical
from pyhv.sched import SCHEDULERS
from pyhv.sched.runstate import State
from pyhv.traps.dispatch import Dispatcher, Observer
from pyhv.traps.report import CrashReport, capture
from pyhv.traps.stopwatch import Stopwatch
from pyhv.xenstore.domu import request_shutdown
from pyhv.xenstore.store import Store

OVERHEAD_FRAMES: Final = 4096
"""Frames that the machine adds for itself: hardware L4s, shared pages of many domains. The
machine-to-physical tables come on top, a 256th part."""
MAX_MEMORY_PAGES: Final = 1 << 23
"""32 GiB: below, no reference count of a frame can overflow, whatever a guest maps."""
_TIME_REFRESH_NS: Final = 100_000_000
_INPUT_LOOK_NS: Final = 5_000_000
_LONGEST_TURN_NS: Final = 30_000_000


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """A machine: `memory_pages` for the guests together, the scheduler's name, how time passes.

    `seed` is the source of all chance (identifiers today). `measure` times handlers for the statistics.
    `tuned` changes the emulator's hot paths where that is proven to be right (`cpu/tuning/`); what guests
    compute is the same without, but for code that is overwritten through another page than it runs from, and
    for flags and corners of floating point (docs/cpu.md).
    """

    memory_pages: int
    scheduler: str = "credit"
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


class _Timer(enum.IntEnum):
    ONE_SHOT = 0
    POLL = 1
    WATCHDOG = 2


_TimerKey = tuple[_Timer, int, int]
"""(kind, domid, vCPU or watchdog number)."""


class Machine:
    """One computer without a guest yet. `create` domains, `run`, `close`."""

    def __init__(self, config: MachineConfig) -> None:
        if not 0 < config.memory_pages <= MAX_MEMORY_PAGES:
            raise ConfigError(
                f"A machine of {config.memory_pages >> 8} MiB is not possible; choose 1 MiB to 32 GiB."
            )
        if config.scheduler not in SCHEDULERS:
            raise ConfigError(
                f"There is no scheduler '{config.scheduler}'; choose one of {', '.join(SCHEDULERS)}."
            )
        self_test()
        self.config = config
        self.tuning = tuning() if config.tuned else None
        self.seed = config.seed
        self.ram = Ram(config.memory_pages + config.memory_pages // 256 + OVERHEAD_FRAMES)
        self.frames = FrameTable(self.ram)
        self.physical = PhysicalMemory(self.ram, self.frames)
        self.frames.on_free, self.frames.on_death = self._frame_freed, self.physical.code_gone
        self.m2p = MachineToPhysical(self.ram, self.frames)
        self.m2p_frames = self.m2p.frames
        self.compat_m2p_frames = self.m2p.compat_frames
        (self.zero_frame,) = self.frames.allocate_xen()
        self.xen_gdt = {
            64: self._gdt_page(RESERVED_DESCRIPTORS),
            32: self._gdt_page(RESERVED_DESCRIPTORS_COMPAT),
        }
        """The page with the hypervisor's part of the GDT, by the guest's width."""
        self.clock: Clock = VirtualClock() if config.virtual_time else RealClock(host_tsc())
        self.counts_blocks = config.virtual_time or not can_stop_at_any_time()
        self.scheduler = SCHEDULERS[config.scheduler]()
        self.store = Store()
        self.domains: dict[int, Domain] = {}
        self.dispatchers: dict[int, Dispatcher] = {}
        self.wirings: dict[int, Wiring] = {}
        self.reports: dict[int, CrashReport] = {}
        self.stopwatch = Stopwatch()
        self.engine_ns = 0
        """Host ns spent inside engines, handlers included."""
        self.debug_sink: Callable[[Domain, bytes], None] = lambda _domain, _text: None
        """Gets what guests write to the hypervisor's console."""
        self._observers: list[Observer] = []
        self._timers: TimerQueue[_TimerKey] = TimerQueue()
        self._running: Vcpu | None = None
        self._buried: set[int] = set()
        self.dom0 = EventChannels(
            0, 1, lookup=self.channels, pending=Unshared(), wake=lambda _vcpu: None,
            port_became_pending=lambda _port: None, privileged=True, max_port=4095,
        )  # fmt: skip

    def _gdt_page(self, descriptors: Mapping[int, int]) -> Mfn:
        (page,) = self.frames.allocate_xen()
        for selector, descriptor in descriptors.items():
            self.ram.q[page << 9 | (selector & 0xFFF) >> 3] = descriptor
        return page

    # -- domains -----------------------------------------------------------------------------------------

    def next_domid(self) -> int:
        """The domid of the next domain."""
        return len(self.domains) + 1

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
        domain, dispatcher, wiring = build_domain(self, image, config, ramdisk, cmdline, console)
        self.dispatchers[domain.domid] = dispatcher
        self.wirings[domain.domid] = wiring
        dispatcher.observers = self._observers
        for vcpu in domain.vcpus:
            self.scheduler.add(vcpu)
        self.start_vcpu(domain.vcpus[0])
        return domain

    def domain(self, domid: int) -> Domain | None:
        """A domain by domid that lives or is suspended."""
        found = self.domains.get(domid)
        return found if found is not None and (found.alive or found.suspended) else None

    def any_domain(self, domid: int) -> Domain | None:
        """A domain that lives or has not been taken apart."""
        return None if domid in self._buried else self.domains.get(domid)

    def channels(self, domid: int) -> EventChannels | None:
        """A domain's event channels; domain 0 is the toolstack and the back ends."""
        if domid == 0:
            return self.dom0
        found = self.domain(domid)
        return found.events if found is not None else None

    def observe(self, observer: Observer) -> None:
        """Show every exit of every domain to `observer`."""
        self._observers.append(observer)

    def introduce_peers(self, *couples: tuple[Domain, Domain]) -> None:
        """Pair the domains and tell each its peer's domid, in `data/peer` of its store directory.

        `couples` belong together; the others are paired in order, and an odd one out is its own peer.
        """
        pairs = [(one.domid, other.domid) for one, other in couples]
        taken = {domid for pair in pairs for domid in pair}
        rest = [domid for domid in sorted(self.domains) if domid not in taken]
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
        return self.wirings[domain.domid].console.feed(data)

    def request_shutdown(self, domain: Domain, how: str) -> None:
        """Ask a guest to "poweroff", "reboot", "halt" or "suspend" itself."""
        request_shutdown(self.store, domain.domid, how)

    def sink_for(self, dispatcher: Dispatcher) -> ExitSink:
        """The exit sink for an engine: the dispatcher, timed if the machine measures."""
        return self.stopwatch.around(dispatcher) if self.config.measure else dispatcher

    @property
    def guest_ns(self) -> int:
        """Host ns in guest code: engine time without handlers (only if `measure`)."""
        return self.engine_ns - self.stopwatch.spent_ns

    def audit(self) -> list[str]:
        """Everything that is wrong with the machine's memory; empty if it is sound. Not while it runs."""
        living = [domain for domid, domain in self.domains.items() if domid not in self._buried]
        rings = [mfn for domain in living for mfn in self.wirings[domain.domid].rings]
        return audit(self.frames, self.ram, living, m2p=self.m2p, rings=rings)

    # -- services for hypercalls ---------------------------------------------------------------------------

    def now(self) -> int:
        """System time in ns."""
        return self.clock.now()

    def block(self, vcpu: Vcpu) -> None:
        """The vCPU waits for an event."""
        vcpu.blocked = True

    def yield_(self, vcpu: Vcpu) -> None:
        """The vCPU lets others go first."""
        self.scheduler.yield_(vcpu, self.clock.now())

    def poll(self, vcpu: Vcpu, ports: frozenset[int], timeout: int) -> None:
        """The vCPU waits for one of the ports, any event, or an absolute timeout (0: none)."""
        vcpu.blocked, vcpu.polling = True, ports
        if timeout:
            self._arm((_Timer.POLL, vcpu.domid, vcpu.number), timeout)

    def wake(self, vcpu: Vcpu) -> None:
        """An event has come for the vCPU: it no longer blocks."""
        if vcpu.blocked:
            vcpu.blocked = False
            if vcpu.polling is not None:
                vcpu.polling = None
                self._timers.cancel((_Timer.POLL, vcpu.domid, vcpu.number))
            self._make_runnable(vcpu)

    def _make_runnable(self, vcpu: Vcpu) -> None:
        if vcpu is self._running or not vcpu.online or not self.domains[vcpu.domid].alive:
            return
        now = self.clock.now()
        vcpu.runstate.change(State.RUNNABLE, now)
        if self.scheduler.wake(vcpu, now):
            self.clock.shorten(now)

    def port_pending(self, domain: Domain, port: int) -> None:
        """A port of `domain` has become pending: who polls it wakes."""
        for vcpu in domain.vcpus:
            if vcpu.polling is not None and port in vcpu.polling:
                self.wake(vcpu)

    def set_timer(self, vcpu: Vcpu, deadline: int) -> None:
        """Arm the vCPU's one-shot timer; 0 disarms."""
        key = (_Timer.ONE_SHOT, vcpu.domid, vcpu.number)
        if deadline:
            self._arm(key, deadline)
        else:
            self._timers.cancel(key)

    def _arm(self, key: _TimerKey, deadline: int) -> None:
        self._timers.arm(key, deadline)
        self.clock.shorten(deadline)

    def set_periodic(self, vcpu: Vcpu, period: int) -> None:
        """Set the vCPU's periodic timer; 0 stops it."""
        vcpu.periodic.set(period)
        vcpu.periodic.last = self.clock.now()
        if period:
            self.clock.shorten(vcpu.periodic.last + period)

    def set_watchdog(self, domain: Domain, number: int, deadline: int) -> None:
        """Arm a domain watchdog; 0 disarms."""
        timer = domain.watchdogs[number]
        timer.running, timer.deadline = bool(deadline), deadline
        key = (_Timer.WATCHDOG, domain.domid, number)
        if deadline:
            self._arm(key, deadline)
        else:
            self._timers.cancel(key)

    def start_vcpu(self, vcpu: Vcpu) -> None:
        """Bring a vCPU up."""
        if vcpu.registers is None:
            prepare_vcpu(self.domains[vcpu.domid], vcpu.number)
        vcpu.online = True
        now = self.clock.now()
        vcpu.runstate.change(State.RUNNABLE, now)
        vcpu.periodic.last = now
        if self.scheduler.wake(vcpu, now):
            self.clock.shorten(now)

    def stop_vcpu(self, vcpu: Vcpu) -> None:
        """Take a vCPU down."""
        vcpu.online = False
        now = self.clock.now()
        vcpu.runstate.change(State.OFFLINE, now)
        self.scheduler.sleep(vcpu, now)
        self.set_timer(vcpu, 0)

    def end_domain(self, domain: Domain, reason: int) -> None:
        """The guest has shut itself down, for the reason that it has announced if it has announced one."""
        if domain.shutdown_code is not None:
            reason = domain.shutdown_code
        domain.shut_down(reason, "the guest reported a crash" if reason == Shutdown.CRASH else None)
        if reason == Shutdown.CRASH:
            self._report(domain, "the guest reported a crash")
        elif domain.suspended:
            self._suspend(domain)

    def halt_domain(self, domain: Domain) -> None:
        """The domain's last vCPU has gone down: to Xen a power-off, but hardly ever one that was meant.

        Linux goes down that way when it halts with interrupts disabled, so after an early panic.
        """
        if not domain.alive:
            return
        if domain.shutdown_code is None:
            domain.halted = True
            self._report(domain, "it halted for good: its last vCPU went down, and it never shut down")
        self.end_domain(domain, Shutdown.POWEROFF)

    def _suspend(self, domain: Domain) -> None:
        """All vCPUs stop. Events and timers still come; they are seen after `resume`."""
        self.wirings[domain.domid].console_event()  # the end of this turn passes it on
        domain.suspender = domain.loaded
        now = self.clock.now()
        for vcpu in domain.vcpus:
            if vcpu.online and vcpu is not self._running:
                if not vcpu.blocked:
                    vcpu.runstate.change(State.OFFLINE, now)
                self.scheduler.sleep(vcpu, now)

    def resume(self, domain: Domain, *, cancelled: bool) -> None:
        """Let a suspended domain run on: its call returns 1 if the suspension was `cancelled`, else 0.

        After 0 a guest expects what a restored one finds: fresh event channels and grant tables, and machine
        addresses in its start_info. To provide them is up to the caller. ConfigError: it is not suspended.
        """
        if not domain.suspended:
            raise ConfigError(f"{domain.name} is not suspended, so it cannot be resumed.")
        dispatcher, suspender = self.dispatchers[domain.domid], domain.suspender
        if suspender is not None:
            dispatcher.load(suspender)
            domain.engine.vmcb.q[v.RAX] = int(cancelled)
        domain.shutdown_reason = domain.shutdown_code = domain.suspender = None
        now = self.clock.now()
        for vcpu in domain.vcpus:
            if vcpu.online and not vcpu.blocked:
                vcpu.runstate.change(State.RUNNABLE, now)
                self.scheduler.wake(vcpu, now)

    def crash(self, domain: Domain, cause: str) -> None:
        """The guest did something fatal."""
        if domain.alive:
            domain.shut_down(Shutdown.CRASH, cause)
            self._report(domain, cause)

    def _report(self, domain: Domain, cause: str) -> None:
        dispatcher = self.dispatchers[domain.domid]
        self.reports[domain.domid] = capture(
            dispatcher.cpu, cause, self.clock.now(), tuple(dispatcher.last_exits())
        )

    def debug_output(self, domain: Domain, text: bytes) -> None:
        """The guest wrote to the hypervisor's console."""
        self.debug_sink(domain, text)

    def _frame_freed(self, mfn: int, owner: int) -> None:
        """Before a frame changes hands: no stale translation of it, no stale code from it."""
        domain = self.domains.get(owner)
        if domain is not None:
            if not self.frames.xen_heap[mfn]:
                domain.tot_pages -= 1
            if domain.tables.stale:
                domain.tables.flush = True
        if self.frames.code[mfn]:
            self.physical.code_written(mfn)
            self.frames.code[mfn] = 0  # nobody maps it, nor can by his TLB when he runs on

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
            self._expire(now)
            self._bury_the_dead()
            if all(not domain.alive for domain in self.domains.values()):
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
        return self.domains[name[0]].vcpus[name[1]]

    def _turn(self, vcpu: Vcpu, slice_ns: int, limit: int | None) -> None:
        """Let one vCPU run until its slice or the next deadline ends, or it leaves by itself."""
        domain = self.domains[vcpu.domid]
        dispatcher = self.dispatchers[domain.domid]
        start = self.clock.now()
        domain.tables.code.tidy()
        if self.physical.shared_code:
            self.physical.renew_shared()
        dispatcher.load(vcpu)
        self._running = vcpu
        vcpu.runstate.change(State.RUNNING, start)
        if vcpu.periodic.due(start):
            domain.events.raise_virq(Virq.TIMER, vcpu.number)
        if start - vcpu.time_stamp >= _TIME_REFRESH_NS or vcpu.time_stamp < 0:
            self._write_areas(vcpu, start)
        deadline = start + min(slice_ns, _LONGEST_TURN_NS)
        for due in (self._timers.next_deadline(), vcpu.periodic.next_deadline(), limit):
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
                self.crash(domain, fatal.why)
            finally:
                self.clock.end()
                self.engine_ns += time.perf_counter_ns() - began
        end = self.clock.now()
        self._running = None
        if vcpu.runstate_area:
            self._write_areas(vcpu, end)
        self.scheduler.charge(vcpu, end - start, end)
        if vcpu.online:
            ready = State.RUNNABLE if domain.alive else State.OFFLINE
            vcpu.runstate.change(State.BLOCKED if vcpu.blocked else ready, end)
        if vcpu.blocked or not vcpu.online or not domain.alive:
            self.scheduler.sleep(vcpu, end)
        self.wirings[domain.domid].settle(vcpu.polling)

    def _write_areas(self, vcpu: Vcpu, now: int) -> None:
        """Refresh what the guest reads of its time and runstate."""
        vcpu.update_time()
        write_runstate(vcpu, now)

    def _expire(self, now: int) -> None:
        """Let due timers fire."""
        for kind, domid, number in self._timers.expire(now):
            domain = self.domain(domid)
            if domain is None:
                continue
            if kind is _Timer.ONE_SHOT:
                domain.events.raise_virq(Virq.TIMER, number)
            elif kind is _Timer.POLL:
                self.wake(domain.vcpus[number])
            else:
                domain.shut_down(Shutdown.WATCHDOG, "its watchdog has expired")

    def _idle(self, now: int, limit: int | None, sources: list[InputSource]) -> bool:
        """Nobody can run: let time pass. False if nothing will ever happen again."""
        due = [self._timers.next_deadline(), self.scheduler.next_event(now)]
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
        for domid, domain in self.domains.items():
            if not domain.alive and not domain.suspended and domid not in self._buried:
                self.wirings[domid].console_event()
                self.wirings[domid].settle()
                for vcpu in domain.vcpus:
                    self.scheduler.remove(vcpu)
                    self.set_timer(vcpu, 0)
                    self._timers.cancel((_Timer.POLL, domid, vcpu.number))
                for number in range(len(domain.watchdogs)):
                    self._timers.cancel((_Timer.WATCHDOG, domid, number))
                take_apart(self, domain, self.dispatchers[domid])
                domain.engine.close()
                self._buried.add(domid)

    def close(self) -> None:
        """Free engines and threads. Domains that still live are gone with their memory."""
        for domid, domain in self.domains.items():
            if domid not in self._buried:
                domain.engine.close()
        if isinstance(self.clock, RealClock):
            self.clock.close()
        for wiring in self.wirings.values():
            wiring.flush()  # something is left where an exception has ended a turn
