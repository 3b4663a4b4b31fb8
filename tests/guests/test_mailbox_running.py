# SPDX-License-Identifier: GPL-2.0-only
"""Guests whose translations, TLB and turns others want something of while they run."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from pyhv.abi.numbers import Virq
from pyhv.cpu.exits import ExitRecord
from pyhv.machine import Machine
from pyhv.testing.bench import Bench
from pyhv.until import Outcome

LONG, MOST = 20, 60


class Neighbour:
    """Another thread, which at every third exit wants all at once of a guest.

    Nothing is done before that exit goes on, and everything when the next one comes.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.thread = ThreadPoolExecutor(1)
        self.asked = self.done = 0
        self.exits = 0

    def exit(self, record: ExitRecord) -> None:
        assert self.done == self.asked
        self.exits += 1
        if self.exits % 3 == 0 and self.asked < MOST:
            self.asked += 1
            self.thread.submit(self.ask, record.domid).result(LONG)
            assert self.done == self.asked - 1

    def ask(self, domid: int) -> None:
        domain = self.machine.residents[domid].domain
        domain.drop_code(0, self.machine.frames.count)
        domain.mailbox.do(domain.flush_tlb)
        domain.mailbox.do(domain.events.raise_virq, Virq.TIMER, 0)
        self.machine.services.leave_processor(domain)
        domain.mailbox.do(self.note)

    def note(self) -> None:
        self.done += 1


@pytest.mark.parametrize("guests", [("ping", "pong"), ("pages32", "fifo"), ("code", "hello32")])
def test_whatever_others_want_of_a_running_guest_is_done_at_its_exit(guests: tuple[str, ...]) -> None:
    with Bench() as bench:
        neighbour = Neighbour(bench.machine)
        bench.machine.observe(neighbour)
        for name in guests:
            bench.add(name)
        assert bench.run() is Outcome.ENDED
        for console in bench.consoles:
            assert b"SUCCESS" in console.data
        assert neighbour.done == neighbour.asked > 5
        assert bench.machine.audit() == []
