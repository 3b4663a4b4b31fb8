# SPDX-License-Identifier: GPL-2.0-only
"""Who is on the machine: one record for each domain, and one table of them.

A domain is found here from the moment at which it is complete to the one at which it has been taken apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pyhv.devices.wiring import Wiring
from pyhv.domain.domain import Domain
from pyhv.events.channels import EventChannels
from pyhv.traps.dispatch import Dispatcher
from pyhv.traps.report import CrashReport


@dataclass(slots=True, eq=False)
class Resident:
    """A domain, with what the hypervisor has for it: its exits' handler and its back ends."""

    domain: Domain
    dispatcher: Dispatcher
    wiring: Wiring
    report: CrashReport | None = None
    """What was known of it when it crashed."""
    buried: bool = False
    """It has been taken apart."""


class Residents:
    """All domains of a machine but domain 0, whose event channels are `dom0`."""

    def __init__(self) -> None:
        self._by_domid: dict[int, Resident] = {}
        self.dom0: EventChannels

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._by_domid.values())

    def __len__(self) -> int:
        return len(self._by_domid)

    def __getitem__(self, domid: int) -> Resident:
        return self._by_domid[domid]

    def get(self, domid: int) -> Resident | None:
        """The record of a domain, which may have ended."""
        return self._by_domid.get(domid)

    def add(self, resident: Resident) -> None:
        """Take in a domain that is complete."""
        assert resident.domain.domid not in self._by_domid
        self._by_domid[resident.domain.domid] = resident

    def remove(self, domid: int) -> None:
        """Forget a domain that has been taken apart."""
        del self._by_domid[domid]

    def any_domain(self, domid: int) -> Domain | None:
        """A domain that lives or has not been taken apart."""
        found = self._by_domid.get(domid)
        return None if found is None or found.buried else found.domain

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
