# SPDX-License-Identifier: GPL-2.0-only
"""A machine with guests on it: `add` by name or source text, `run`, look at `consoles`.

A bench that is `restored` proves saved state by the way: at some exits it takes a snapshot of its machine,
gives the machine up, and goes on with another one that is made of the snapshot. Guests must not notice.
"""

import random
from collections.abc import Iterator
from typing import Final, Self

from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.guests.build import build_builtin
from pyhv.guests.catalogue import BUILTIN, HOSTILE, nets_of
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.resident import Resident
from pyhv.snapshot.snapshot import take
from pyhv.testing.guest_machine import SECOND, Sink, image_of
from pyhv.until import AllEnded, Exits, Outcome
from pyhv.xenstore.peers import introduce_peers

PAGES: Final = 4096
"""Of each guest."""
_GAPS: Final = (3, 20, 150)
"""Exits between snapshots, about: the first come while guests set themselves up."""


class Bench:
    """Guests on a machine with room for 16."""

    def __init__(
        self, *, virtual: bool = True, scheduler: str = "credit", restored: bool = False, seed: int = 1
    ) -> None:
        config = MachineConfig(16 * PAGES, virtual_time=virtual, scheduler=scheduler)
        self.machine = Machine(config)
        self.consoles: list[Sink] = []
        self.residents: list[Resident] = []
        """Of each guest, in their order; of one that has ended, the last that was known of it."""
        self.machines = 1
        """How many there have been, one after the other."""
        self._domids: list[int] = []
        self._cuts = self._some_exits(random.Random(seed)) if restored else iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.machine.close()

    @property
    def domains(self) -> list[Domain]:
        """Of each guest, in their order."""
        return [resident.domain for resident in self.residents]

    def add(self, guest: str, *, name: str | None = None, vcpus: int = 1) -> None:
        """A guest of pyhv's by name, or one from assembly text; it is to have booted when `run` is called."""
        if guest in BUILTIN or guest in HOSTILE:
            raw, name = build_builtin(guest), name or guest
        else:
            raw, name = image_of(guest), name or "guest"
        console = Sink()
        settings = DomainConfig(name, PAGES, vcpus=vcpus, nets=nets_of(guest))
        domain = self.machine.create(load_image(raw, name), settings, console=console)
        self.consoles.append(console)
        self.residents.append(self.machine.residents[domain.domid])
        self._domids.append(domain.domid)

    def run(self, seconds: float = 20) -> Outcome:
        """Run for so much machine time, or until nothing goes on."""
        introduce_peers(self.machine.store, self.machine.residents.domids())
        end = self.machine.now() + int(seconds * SECOND)
        for exits in self._cuts:
            outcome = self.machine.run(AllEnded() | Exits(exits), timeout_ns=end - self.machine.now())
            if outcome is not Outcome.STOPPED:
                return outcome
            self._restore()
        return self.machine.run(timeout_ns=end - self.machine.now())

    def _restore(self) -> None:
        """Go on with a machine that is made of this one's snapshot."""
        snapshot = take(self.machine)
        self.machine.close()
        consoles = dict(zip(self._domids, self.consoles, strict=True))
        self.machine = snapshot.rebuild(consoles.__getitem__)
        self.machines += 1
        alive = {resident.domain.domid: resident for resident in self.machine.residents}
        self.residents = [
            alive.get(domid, old) for domid, old in zip(self._domids, self.residents, strict=True)
        ]

    @staticmethod
    def _some_exits(chance: random.Random) -> Iterator[int]:
        """From one snapshot to the next."""
        return (chance.randint(1, 2 * gap) for gap in _GAPS)
