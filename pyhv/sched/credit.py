# SPDX-License-Identifier: GPL-2.0-only
"""The credit scheduler: Xen's credit1, with weights, caps and a boost for those who wait for I/O.

Published as an algorithm in Xen's documentation ("Credit Scheduler"); the periods and limits are Xen's
defaults. Where Xen samples who runs at each tick, this one also looks at the exact time used, which a machine
with a virtual clock knows anyway. It knows no clock and no engine.

    credit       CPU time a vCPU has earned and not used, in nanoseconds; running burns it 1:1
    accounting   every 30 ms the pCPUs' time is dealt out by weight to the *active* vCPUs
    priority     UNDER: credit left, OVER: none left, BOOST: was UNDER when it woke
    parked       its domain has a cap and has run far enough beyond it: not picked until credit >= 0
    active       earning: has been seen running at a tick, or in debt; leaves when it earned a full slice

The run queue is one list, ordered by priority and first-come within one. `pick` takes its head; a vCPU whose
slice ended goes behind its equals. So credit decides only which *class* a vCPU is in, and the classes
change at each accounting: over many periods each gets its weight's share, within one it is round robin.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pyhv.sched.base import (
    IDLE,
    MILLISECOND,
    Decision,
    SchedParameters,
    Schedulable,
    Scheduler,
    VcpuName,
    check_parameters,
)
from pyhv.sched.saved import read_accounts, read_parameters, read_places, say_accounts, say_places
from pyhv.state import Plain, cache, entries, given, typed


class Priority(enum.IntEnum):
    """Classes of the run queue; the lower number runs first."""

    BOOST = 0
    UNDER = 1
    OVER = 2


@dataclass(slots=True, eq=False)
class _Domain:
    """Parameters and members of one domain."""

    weight: int
    cap: int
    members: "list[_Account]" = cache("follows from the accounts", default_factory=list)


@dataclass(slots=True, eq=False)
class _Account:
    """One vCPU's account."""

    vcpu: Schedulable = given("whoever adds it")
    domain: _Domain = given("that of its vCPU")
    credit: int = 0
    priority: Priority = Priority.UNDER
    awake: bool = False
    parked: bool = False
    active: bool = False
    yielded: bool = False
    stint: int = 0
    """Nanoseconds run since it was last picked from the queue."""


def _share(total: int, part: int, whole: int) -> int:
    """`total * part / whole`, rounded up."""
    return -(-total * part // whole)


class Credit(Scheduler):
    """Xen's credit1. Times are nanoseconds; a weight is per vCPU of the domain, a cap for the whole domain.

    `timeslice` is the longest run without a new decision and the accounting period; `ticks` is how many times
    a period the running vCPU is looked at; `ratelimit` is how long a vCPU runs before another may preempt it.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "timeslice": "configured",
        "tick": "configured",
        "ratelimit": "configured",
        "pcpus": "configured",
    }

    def __init__(
        self,
        timeslice: int = 30 * MILLISECOND,
        ticks: int = 3,
        ratelimit: int = 1 * MILLISECOND,
        pcpus: int = 1,
    ) -> None:
        if timeslice <= 0 or ticks <= 0 or ratelimit < 0 or pcpus <= 0 or ratelimit > timeslice:
            raise ValueError("a credit scheduler needs positive periods, and a rate limit within the slice")
        self.timeslice = timeslice
        self.tick = timeslice // ticks
        self.ratelimit = ratelimit
        self.pcpus = pcpus
        self._accounts: dict[VcpuName, _Account] = {}
        self._domains: dict[int, _Domain] = {}
        self._queue: list[_Account] = []
        self._running: dict[int, _Account] = {}
        self._next_accounting = timeslice
        self._balance = 0
        """Sum of the active vCPUs' credits after the last accounting."""

    # ---- who takes part

    def check(self, parameters: SchedParameters) -> None:
        """ConfigError: out of range."""
        check_parameters(*parameters, self.pcpus)

    def add_domain(self, domid: int, parameters: SchedParameters) -> None:
        """Take a domain in."""
        if domid in self._domains:
            raise ValueError(f"domain {domid} is scheduled already")
        self.check(parameters)
        self._domains[domid] = _Domain(*parameters)

    def remove_domain(self, domid: int) -> None:
        """Forget a domain."""
        for account in list(self._domains[domid].members):
            self.remove(account.vcpu)
        del self._domains[domid]

    def add(self, vcpu: Schedulable) -> None:
        """Take a new vCPU in, asleep, with no credit."""
        if vcpu.id in self._accounts:
            raise ValueError(f"vCPU {vcpu.id} is scheduled already")
        domain = self._domains[vcpu.domid]
        account = _Account(vcpu, domain)
        domain.members.append(account)
        self._accounts[vcpu.id] = account

    def remove(self, vcpu: Schedulable) -> None:
        """Forget a vCPU; its credit is gone."""
        account = self._accounts.pop(vcpu.id)
        self._withdraw(account)
        account.domain.members.remove(account)

    def adjust(self, domid: int, parameters: SchedParameters) -> None:
        """Change a domain's parameters, from the next accounting on; without a cap nobody stays parked."""
        domain = self._domains[domid]
        self.check(parameters)
        domain.weight, domain.cap = parameters
        if domain.cap == 0:
            for account in domain.members:
                self._unpark(account)

    def parameters(self, domid: int) -> SchedParameters:
        """What is in force for a domain."""
        domain = self._domains[domid]
        return SchedParameters(domain.weight, domain.cap)

    # ---- what vCPUs do

    def wake(self, vcpu: Schedulable, now: int) -> bool:
        """Make a sleeper runnable, boosted if it has credit; True if it outranks what runs."""
        self._account_until(now)
        account = self._accounts[vcpu.id]
        if account.awake:
            return False
        account.awake = True
        account.yielded = False
        if account.parked:
            return False
        if account.priority == Priority.UNDER:
            account.priority = Priority.BOOST
        self._enqueue(account)
        return len(self._running) < self.pcpus or any(
            account.priority < running.priority for running in self._running.values()
        )

    def sleep(self, vcpu: Schedulable, now: int) -> None:
        """Take a vCPU out of the competition; it keeps its credit, and goes on earning while active."""
        self._account_until(now)
        account = self._accounts[vcpu.id]
        self._withdraw(account)
        account.awake = False

    def yield_(self, vcpu: Schedulable, now: int) -> None:
        """Let the vCPU queue, this once, behind one of the next lower class too."""
        self._accounts[vcpu.id].yielded = True

    def charge(self, vcpu: Schedulable, ns_run: int, now: int) -> None:
        """Burn credit for a run that ended at `now`; a run across a tick ends a boost and starts earning."""
        account = self._accounts[vcpu.id]
        account.credit -= ns_run
        account.stint += ns_run
        if now // self.tick > (now - ns_run) // self.tick:
            if account.priority == Priority.BOOST:
                account.priority = Priority.UNDER
            account.active = True
        # Xen finds debtors by sampling only; a guest that sleeps through every tick would run for free.
        if account.credit < 0:
            account.active = True
        self._account_until(now)

    # ---- decisions

    def pick(self, now: int, pcpu: int = 0) -> Decision:
        """Take the best of the run queue; a vCPU within its rate limit goes on undisturbed.

        A slice never reaches beyond the next accounting, so that parking and unparking happen on time.
        """
        self._account_until(now)
        current = self._running.pop(pcpu, None)
        if current is not None:
            if current.stint < self.ratelimit and not current.yielded:
                self._running[pcpu] = current
                return Decision(current.vcpu, self._slice(now, self.ratelimit - current.stint))
            self._enqueue(current)
        busy = {account.vcpu.domid for account in self._running.values()}
        for account in self._queue:
            if account.vcpu.domid not in busy:
                self._queue.remove(account)
                account.stint = 0
                account.yielded = False
                self._running[pcpu] = account
                return Decision(account.vcpu, self._slice(now, self.timeslice))
        return IDLE

    def next_event(self, now: int) -> int | None:
        """The next accounting while anybody runs, waits or is parked awake; None when all sleep."""
        self._account_until(now)
        return self._next_accounting if any(account.awake for account in self._accounts.values()) else None

    def credit_of(self, vcpu: Schedulable) -> tuple[int, Priority, bool]:
        """A vCPU's (credit in ns, priority, parked), for traces and lessons."""
        account = self._accounts[vcpu.id]
        return account.credit, account.priority, account.parked

    def _slice(self, now: int, longest: int) -> int:
        return min(longest, self._next_accounting - now)

    # ---- state

    def state(self) -> dict[str, Plain]:
        """Accounts, domains, the queue, and how far the accounting has come."""
        return {
            "domains": [[domid, [domain.weight, domain.cap]] for domid, domain in self._domains.items()],
            "accounts": say_accounts(self._accounts),
            **say_places(self._queue, self._running),
            "next_accounting": self._next_accounting,
            "balance": self._balance,
        }

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Go on from there with the same vCPUs. StateError."""
        found = entries(dict(saved), "", self.state())
        parameters = read_parameters(found["domains"], self._domains.keys(), self.pcpus)
        domains = {domid: _Domain(*each) for domid, each in parameters.items()}
        accounts = read_accounts(found["accounts"], self._accounts)
        may_run = {name for name, account in accounts.items() if account.awake and not account.parked}
        self._queue, self._running = read_places(found, accounts, may_run)
        self._next_accounting = typed(int, found["next_accounting"], "next_accounting")
        self._balance = typed(int, found["balance"], "balance")
        self._accounts, self._domains = accounts, domains
        for (domid, _), account in accounts.items():
            account.domain = domains[domid]
            account.domain.members.append(account)

    # ---- the run queue

    def _enqueue(self, account: _Account) -> None:
        """Insert behind all of the same or a better class, and after a yield behind one more."""
        place = 0
        while place < len(self._queue) and self._queue[place].priority <= account.priority:
            place += 1
        if account.yielded and place < len(self._queue):
            place += 1
        self._queue.insert(place, account)

    def _withdraw(self, account: _Account) -> None:
        """Take a vCPU off the queue or off its pCPU."""
        if account in self._queue:
            self._queue.remove(account)
        for pcpu, running in list(self._running.items()):
            if running is account:
                del self._running[pcpu]

    def _park(self, account: _Account) -> None:
        if not account.parked:
            account.parked = True
            self._withdraw(account)

    def _unpark(self, account: _Account) -> None:
        if account.parked:
            account.parked = False
            if account.awake:
                self._enqueue(account)

    # ---- accounting

    def _account_until(self, now: int) -> None:
        """Do every accounting that has become due. With nobody active, none changes a thing."""
        while self._next_accounting <= now:
            if any(account.active for account in self._accounts.values()):
                self._account()
                self._next_accounting += self.timeslice
            else:
                self._balance = 0
                missed = (now - self._next_accounting) // self.timeslice + 1
                self._next_accounting += missed * self.timeslice

    def _account(self) -> None:
        """Deal one period's time out to the active vCPUs and sort them into their classes."""
        active = [(domain, [e for e in domain.members if e.active]) for domain in self._domains.values()]
        active = [(domain, entries) for domain, entries in active if entries]
        # Domains whose peak binds come first: what they leave is dealt to those after them.
        active.sort(
            key=lambda pair: self._peak(pair[0], len(pair[1])) * 256 // (pair[0].weight * len(pair[1]))
        )
        weight_total = weight_left = sum(domain.weight * len(entries) for domain, entries in active)
        # A negative balance means that more was used than dealt: deal more, or all would end in OVER.
        debt = max(0, -self._balance)
        pot = self.timeslice * self.pcpus + debt
        self._balance = 0
        for domain, earning in active:
            weight = domain.weight * len(earning)
            weight_left -= weight
            peak = self._peak(domain, len(earning), _share(debt, weight, weight_total))
            fair = _share(pot, weight, weight_total)
            if fair > peak:
                if weight_left:
                    pot += _share(fair - peak, weight_total, weight_left)
                fair = peak
            for account in earning:
                self._settle(
                    account, _share(fair, 1, len(earning)), _share(self._cap(domain), 1, len(earning))
                )
        self._queue.sort(key=lambda account: account.priority)

    def _cap(self, domain: _Domain) -> int:
        """A domain's ceiling per period in ns; 0 is none."""
        return self.timeslice * domain.cap // 100

    def _peak(self, domain: _Domain, vcpus: int, debt: int = 0) -> int:
        """The most a domain can be dealt in one period: each vCPU can use one pCPU, and the cap holds."""
        peak = self.timeslice * vcpus + debt
        return min(peak, self._cap(domain)) if domain.cap else peak

    def _settle(self, account: _Account, earned: int, cap: int) -> None:
        """Pay a vCPU, and derive class, parking and activity; `cap` is its part of the domain's."""
        account.credit += earned
        if account.credit < 0:
            account.priority = Priority.OVER
            if cap and account.credit < -cap:
                self._park(account)
            account.credit = max(account.credit, -self.timeslice)
        else:
            account.priority = Priority.UNDER
            self._unpark(account)
            if account.credit > self.timeslice:
                # It earns more than it uses: let it rest, with something in hand for when it comes back.
                account.active = False
                account.credit //= 2
        self._balance += account.credit
