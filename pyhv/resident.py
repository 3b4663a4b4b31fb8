# SPDX-License-Identifier: GPL-2.0-only
"""Who is on the machine: one record for each domain, and one table of them.

A domain is found here from the moment at which it is complete to the one at which it has been taken apart.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pyhv.abi.domid import DOMID_FIRST_RESERVED
from pyhv.abi.numbers import NR_HYPERCALLS
from pyhv.cpu.exits import ExitKind
from pyhv.domain.domain import Domain
from pyhv.errors import ConfigError
from pyhv.events.channels import EventChannels
from pyhv.frozen import frozen
from pyhv.grants.table import GrantTable
from pyhv.state import MOST_TALLY, Plain, Tally, construct, entries, state, typed
from pyhv.traps.dispatch import Dispatcher
from pyhv.traps.report import CrashReport

_Domid = Annotated[int, range(1, DOMID_FIRST_RESERVED)]


@dataclass(slots=True)
class Counts:
    """What domains have done."""

    exits: Annotated[list[Tally], len(ExitKind)] = field(default_factory=lambda: [0] * len(ExitKind))
    """By kind."""
    hypercalls: Annotated[list[Tally], NR_HYPERCALLS] = field(default_factory=lambda: [0] * NR_HYPERCALLS)
    """By number, those inside multicalls included."""
    unknown_hypercalls: Tally = 0
    emulated: Tally = 0
    """Privileged instructions and page-table stores done for them."""
    events: Tally = 0
    """Delivered."""
    table_updates: Tally = 0

    def add(self, other: "Counts") -> None:
        """Count what others have done too."""
        for mine, theirs in ((self.exits, other.exits), (self.hypercalls, other.hypercalls)):
            for number, count in enumerate(theirs):
                mine[number] = _most(mine[number] + count)
        self.unknown_hypercalls = _most(self.unknown_hypercalls + other.unknown_hypercalls)
        self.emulated = _most(self.emulated + other.emulated)
        self.events = _most(self.events + other.events)
        self.table_updates = _most(self.table_updates + other.table_updates)


def _most(count: int) -> int:
    """A count that may be saved: a snapshot may begin with the largest one, and it stays there."""
    return min(count, MOST_TALLY)


@frozen
class Ended:
    """What is left of a domain: nothing on the machine, and this for who has asked for it."""

    domid: int
    name: str
    reason: int | None
    """Why it shut down (`abi.numbers.Shutdown`, or what else it said); None: it was destroyed."""
    cause: str | None
    """What it died of; None if it ended as it wanted."""
    halted: bool
    """It never shut down: its last vCPU went down."""
    report: CrashReport | None
    """What was known of it when it crashed."""
    counts: Counts


@dataclass(slots=True, eq=False)
class Resident:
    """A domain, with what the hypervisor has for it: its exits' handler. Its devices are domain 0's."""

    domain: Domain
    dispatcher: Dispatcher
    report: CrashReport | None = None
    """What was known of it when it crashed."""
    on_end: Callable[[Ended], None] = lambda _ended: None
    """Told when it has been taken apart."""

    def counts(self) -> Counts:
        """What it has done so far."""
        dispatcher = self.dispatcher
        return Counts(
            exits=[_most(count) for count in dispatcher.counts],
            hypercalls=[_most(count) for count in dispatcher.hypercalls],
            unknown_hypercalls=_most(dispatcher.unknown_hypercalls),
            emulated=_most(dispatcher.emulated),
            events=_most(dispatcher.events_delivered),
            table_updates=_most(self.domain.tables.updates),
        )

    def count_on(self, counts: Counts) -> None:
        """Go on from counts that were saved."""
        dispatcher = self.dispatcher
        dispatcher.counts[:], dispatcher.hypercalls[:] = (
            array("Q", counts.exits),
            array("Q", counts.hypercalls),
        )
        dispatcher.unknown_hypercalls, dispatcher.emulated = counts.unknown_hypercalls, counts.emulated
        dispatcher.events_delivered = counts.events
        self.domain.tables.updates = counts.table_updates

    def ended(self) -> Ended:
        """What is to be remembered of it."""
        domain, life = self.domain, self.domain.life
        return Ended(
            domain.domid, domain.name, life.reason, life.cause, life.halted, self.report, self.counts()
        )


class Residents:
    """All domains of a machine but domain 0, whose event channels are `dom0`.

    `remembered(domid)` says whether something on the machine is still known by the domid of one that is gone,
    as frames are that another domain has mapped.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "_by_domid": "each says its own state",
        "_remembered": "the machine's",
        "dom0": "says its own state",
    }

    def __init__(self, remembered: Callable[[int], bool]) -> None:
        self._by_domid: dict[int, Resident] = {}
        self._remembered = remembered
        self._next_domid = 1
        self.dom0: EventChannels
        self.past = Counts()
        """What those have done that are gone."""

    def state(self) -> dict[str, Plain]:
        """What is remembered of those that are gone; the others say theirs themselves."""
        return {"next_domid": self._next_domid, "past": state(self.past)}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Remember what was saved. StateError."""
        found = entries(dict(saved), "", {"next_domid": None, "past": None})
        self._next_domid = typed(_Domid, found["next_domid"], "next_domid")
        self.past = construct(Counts, found["past"], "past")

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._by_domid.values())

    def __len__(self) -> int:
        return len(self._by_domid)

    def __getitem__(self, domid: int) -> Resident:
        return self._by_domid[domid]

    def next_domid(self) -> int:
        """A number for a new domain: the one that has been free for the longest time.

        Event channels and grant entries of others may still name a domain that is gone.
        """
        for _ in range(1, DOMID_FIRST_RESERVED):
            domid = self._next_domid
            self._next_domid = domid % (DOMID_FIRST_RESERVED - 1) + 1
            if domid not in self._by_domid and not self._remembered(domid):
                return domid
        raise ConfigError("All domain numbers are in use.")

    def domids(self) -> list[int]:
        """The numbers of all domains."""
        return list(self._by_domid)

    def get(self, domid: int) -> Resident | None:
        """The record of a domain, which may have ended."""
        return self._by_domid.get(domid)

    def add(self, resident: Resident) -> None:
        """Take in a domain that is complete."""
        assert resident.domain.domid not in self._by_domid
        self._by_domid[resident.domain.domid] = resident

    def remove(self, resident: Resident) -> None:
        """Forget a domain that has been taken apart, or was never complete."""
        del self._by_domid[resident.domain.domid]

    def put_in_order(self, domids: list[int]) -> None:
        """Be iterated over in this order, which has them all."""
        self._by_domid = {domid: self._by_domid[domid] for domid in domids}

    def any_domain(self, domid: int) -> Domain | None:
        """A domain that lives or has not been taken apart."""
        found = self._by_domid.get(domid)
        return None if found is None else found.domain

    def domain(self, domid: int) -> Domain | None:
        """A domain that lives or is suspended."""
        found = self._by_domid.get(domid)
        if found is None or not (found.domain.alive or found.domain.suspended):
            return None
        return found.domain

    def channels(self, domid: int) -> EventChannels | None:
        """The event channels of a domain that lives or is suspended; domain 0 always does."""
        if domid == 0:
            return self.dom0
        found = self.domain(domid)
        return found.events if found is not None else None

    def grants(self, domid: int) -> GrantTable | None:
        """The grant table of a domain that has not been taken apart."""
        found = self.any_domain(domid)
        return found.grants if found is not None else None

    def counts(self) -> Counts:
        """What all domains together have done, those included that are gone."""
        total = Counts()
        for counts in (self.past, *(resident.counts() for resident in self)):
            total.add(counts)
        return total
