# SPDX-License-Identifier: GPL-2.0-only
"""What the hypervisor does for its guests when they ask: `hypercalls.context.Host`, and timers.

Blocking and waking, polling, timers, vCPUs that go up and down, shutting down, suspending and crashing. All
of it changes who may run and when; the loop in `machine.py` acts on it. Nothing here runs a guest.
"""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from pyhv.abi.layout import u16, u32
from pyhv.abi.numbers import Shutdown, VcpuState, Virq
from pyhv.board import Board
from pyhv.cpu import vmcb as v
from pyhv.devices.toolstack import ToolstackDomain
from pyhv.domain.domain import Domain
from pyhv.domain.lifecycle import Lifecycle
from pyhv.domain.vcpu import Vcpu
from pyhv.events.timers import TimerQueue
from pyhv.hypercalls.context import WATCHDOGS
from pyhv.pcpu import Pcpu
from pyhv.resident import Residents
from pyhv.sched.base import Scheduler
from pyhv.traps.report import capture
from pyhv.traps.startup import prepare_vcpu


class Timer(enum.IntEnum):
    """What a timer is for."""

    ONE_SHOT = 0
    POLL = 1
    WATCHDOG = 2
    EVENT = 3


TimerKey = tuple[Timer, u16, u32]
"""(kind, domid, number of a vCPU, a watchdog or a port)."""


class Services:
    """One machine's services. Its processors say which vCPUs are on them."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("board", "frames", "physical", "clock", "scheduler", "residents"), "the machine's"),
        **dict.fromkeys(("m2p_frames", "compat_m2p_frames", "domain", "any_domain", "dom0"), "the machine's"),
        "timers": "says its own state",
        "pcpus": "said as the turn that is paused",
        "debug_sink": "whoever listens",
    }

    def __init__(
        self,
        board: Board,
        scheduler: Scheduler,
        residents: Residents,
        dom0: ToolstackDomain,
        timers: TimerQueue[TimerKey],
        pcpus: Sequence[Pcpu],
    ) -> None:
        self.board = board
        self.frames, self.physical, self.clock = board.frames, board.physical, board.clock
        self.m2p_frames, self.compat_m2p_frames = board.m2p.frames, board.m2p.compat_frames
        self.scheduler = scheduler
        self.residents = residents
        self.dom0 = dom0
        self.domain, self.any_domain = residents.domain, residents.any_domain
        self.timers = timers
        self.pcpus = pcpus
        self.debug_sink: Callable[[Domain, bytes], None] = lambda _domain, _text: None
        """Gets what guests write to the hypervisor's console."""

    def is_running(self, vcpu: Vcpu) -> bool:
        """Whether a processor has the vCPU, also while its turn is paused."""
        return any(pcpu.running is vcpu for pcpu in self.pcpus)

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
            self._arm((Timer.POLL, vcpu.domid, vcpu.number), timeout)

    def wake(self, vcpu: Vcpu) -> None:
        """An event has come for the vCPU: it no longer blocks."""
        if vcpu.blocked:
            vcpu.blocked = False
            if vcpu.polling is not None:
                vcpu.polling = None
                self.timers.cancel((Timer.POLL, vcpu.domid, vcpu.number))
            self._make_runnable(vcpu)

    def _make_runnable(self, vcpu: Vcpu) -> None:
        stage = self.residents[vcpu.domid].domain.life.stage
        if self.is_running(vcpu) or not vcpu.online or stage is not Lifecycle.RUNNING:
            return
        now = self.clock.now()
        vcpu.runstate.change(VcpuState.RUNNABLE, now)
        if self.scheduler.wake(vcpu, now):
            self.clock.shorten(now)

    def port_pending(self, vcpus: Iterable[Vcpu], port: int) -> None:
        """A port of the domain of `vcpus` has become pending: who polls it wakes."""
        for vcpu in vcpus:
            if vcpu.polling is not None and port in vcpu.polling:
                self.wake(vcpu)

    def set_timer(self, vcpu: Vcpu, deadline: int) -> None:
        """Arm the vCPU's one-shot timer; 0 disarms."""
        key = (Timer.ONE_SHOT, vcpu.domid, vcpu.number)
        if deadline:
            self._arm(key, deadline)
        else:
            self.timers.cancel(key)

    def _arm(self, key: TimerKey, deadline: int) -> None:
        self.timers.arm(key, deadline)
        self.clock.shorten(deadline)

    def set_periodic(self, vcpu: Vcpu, period: int) -> None:
        """Set the vCPU's periodic timer; 0 stops it."""
        vcpu.periodic.set(period)
        vcpu.periodic.last = self.clock.now()
        if period:
            self.clock.shorten(vcpu.periodic.last + period)

    def delay_event(self, domain: Domain, port: int, ns: int) -> None:
        """Have an event arrive at a port of a domain `ns` from now, unless one is under way to it already."""
        key = (Timer.EVENT, domain.domid, port)
        if self.timers.deadline(key) is None:
            self._arm(key, self.clock.now() + ns)

    def watchdog_runs(self, domain: Domain, number: int) -> bool:
        """Whether a domain watchdog is armed."""
        return self.timers.deadline((Timer.WATCHDOG, domain.domid, number)) is not None

    def set_watchdog(self, domain: Domain, number: int, deadline: int) -> None:
        """Arm a domain watchdog; 0 disarms."""
        key = (Timer.WATCHDOG, domain.domid, number)
        if deadline:
            self._arm(key, deadline)
        else:
            self.timers.cancel(key)

    def start_vcpu(self, vcpu: Vcpu) -> None:
        """Bring a vCPU up; it runs if its domain does."""
        if vcpu.context.empty:
            prepare_vcpu(vcpu)
        vcpu.online = True
        now = self.clock.now()
        vcpu.periodic.last = now
        if self.residents[vcpu.domid].domain.life.stage is Lifecycle.RUNNING:
            vcpu.runstate.change(VcpuState.RUNNABLE, now)
            if self.scheduler.wake(vcpu, now):
                self.clock.shorten(now)

    def stop_vcpu(self, vcpu: Vcpu) -> None:
        """Take a vCPU down."""
        vcpu.online = False
        now = self.clock.now()
        vcpu.runstate.change(VcpuState.OFFLINE, now)
        self.scheduler.sleep(vcpu, now)
        self.set_timer(vcpu, 0)

    # -- the life of a domain ----------------------------------------------------------------------------

    def end_domain(self, domain: Domain, reason: int) -> None:
        """The guest has shut itself down, for the reason that it has announced if it has announced one."""
        life = domain.life
        if life.announced is not None:
            reason = life.announced
        life.shut_down(reason, "the guest reported a crash" if reason == Shutdown.CRASH else None)
        if reason == Shutdown.CRASH:
            self._report(domain, "the guest reported a crash")
        elif domain.suspended:
            self.dom0.last_words(domain.domid)  # the end of this turn passes it on
            domain.suspender = domain.loaded.number if domain.loaded else None
            self._stop_running(domain)

    def halt_domain(self, domain: Domain) -> None:
        """The domain's last vCPU has gone down: to Xen a power-off, but hardly ever one that was meant.

        Linux goes down that way when it halts with interrupts disabled, so after an early panic.
        """
        if not domain.alive:
            return
        if domain.life.announced is None:
            domain.life.halted = True
            self._report(domain, "it halted for good: its last vCPU went down, and it never shut down")
        self.end_domain(domain, Shutdown.POWEROFF)

    def pause(self, domain: Domain) -> None:
        """`Machine.pause`."""
        domain.life.become(Lifecycle.PAUSED)
        self._stop_running(domain)

    def unpause(self, domain: Domain) -> None:
        """`Machine.unpause`."""
        domain.life.become(Lifecycle.RUNNING)
        self._run_on(domain)

    def resume(self, domain: Domain, *, cancelled: bool) -> None:
        """`Machine.resume`."""
        dispatcher, suspender = self.residents[domain.domid].dispatcher, domain.suspender
        if suspender is not None:
            dispatcher.load(domain.vcpus[suspender])
            domain.engine.vmcb.q[v.RAX] = int(cancelled)
        domain.life.resume()
        domain.suspender = None
        self._run_on(domain)

    def _stop_running(self, domain: Domain) -> None:
        """All vCPUs stop; one that runs, when its exit is done. What comes meanwhile waits for them."""
        now = self.clock.now()
        self.leave_processor(domain)
        for vcpu in domain.vcpus:
            if vcpu.online and not self.is_running(vcpu):
                if not vcpu.blocked:
                    vcpu.runstate.change(VcpuState.OFFLINE, now)
                self.scheduler.sleep(vcpu, now)

    def leave_processor(self, domain: Domain) -> None:
        """If one of the domain's vCPUs runs, its turn is over when its present exit is done."""
        if any(self.is_running(vcpu) for vcpu in domain.vcpus):
            domain.mailbox.do(self.residents[domain.domid].dispatcher.end_turn)

    def _run_on(self, domain: Domain) -> None:
        """All vCPUs that wait for nothing are runnable again."""
        now = self.clock.now()
        for vcpu in domain.vcpus:
            if vcpu.online and not vcpu.blocked and not self.is_running(vcpu):
                vcpu.runstate.change(VcpuState.RUNNABLE, now)
                if self.scheduler.wake(vcpu, now):
                    self.clock.shorten(now)

    def crash(self, domain: Domain, cause: str) -> None:
        """The guest did something fatal."""
        if domain.alive:
            domain.life.shut_down(Shutdown.CRASH, cause)
            self._report(domain, cause)

    def _report(self, domain: Domain, cause: str) -> None:
        resident = self.residents[domain.domid]
        exits = tuple(resident.dispatcher.last_exits())
        resident.report = capture(resident.dispatcher.cpu, cause, self.clock.now(), exits)

    def debug_output(self, domain: Domain, text: bytes) -> None:
        """The guest wrote to the hypervisor's console."""
        self.debug_sink(domain, text)

    def expire(self, now: int) -> None:
        """Let due timers fire."""
        for kind, domid, number in self.timers.expire(now):
            domain = self.domain(domid)
            if domain is None:
                continue
            if kind is Timer.ONE_SHOT:
                domain.mailbox.do(domain.events.raise_virq, Virq.TIMER, number)
            elif kind is Timer.POLL:
                self.wake(domain.vcpus[number])
            elif kind is Timer.EVENT:
                domain.mailbox.do(domain.events.arrive, number)
            else:
                domain.life.shut_down(Shutdown.WATCHDOG, "its watchdog has expired")

    def forget(self, domain: Domain) -> None:
        """The domain has ended: its vCPUs leave the scheduler, and its timers never fire."""
        self.scheduler.remove_domain(domain.domid)
        for vcpu in domain.vcpus:
            self.set_timer(vcpu, 0)
            self.timers.cancel((Timer.POLL, domain.domid, vcpu.number))
        for number in range(WATCHDOGS):
            self.timers.cancel((Timer.WATCHDOG, domain.domid, number))
        for key in [key for key in self.timers if key[:2] == (Timer.EVENT, domain.domid)]:
            self.timers.cancel(key)
