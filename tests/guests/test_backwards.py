# SPDX-License-Identifier: GPL-2.0-only
"""A debugger that goes backwards comes by the same instructions as forwards, in the other order."""

from collections.abc import Iterator

import pytest
from test_debugger import booted, debug, history, machine_of, run, undisturbed

import pyhv
from pyhv.api.backwards import HistoryWalker
from pyhv.debugger import Debugger, Reason, VcpuId
from pyhv.outside import Position
from pyhv.traps.debug import Observed

State = tuple[Position, tuple[int, ...], int]


@pytest.fixture(params=["tuned", "plain"])
def tuned(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "tuned")


class Traveller:
    """A guest, its debugger, and who goes back."""

    def __init__(self, guest: pyhv.Guest) -> None:
        self.guest, self.machine = guest, machine_of(guest)
        kept = self.machine.keep_history()
        self.debugger: Debugger = debug(guest)
        self.walker = HistoryWalker(self.machine.hypervisor, self.debugger, kept)

    def state(self, vcpu: VcpuId) -> State:
        registers = self.guest.vcpus[vcpu[1]].registers
        general = tuple(getattr(registers, name) for name in ("rax", "rcx", "rdx", "rsp", "rsi", "rdi"))
        return self.machine.hypervisor.position, general, registers.rip

    def to(self, *symbols: str) -> VcpuId:
        """Run to a symbol, to another one, ..."""
        vcpu = 0, 0
        for symbol in symbols:
            self.debugger.set_breakpoints(self.guest.domid, [self.guest.symbols[symbol]])
            self.debugger.go()
            stop = run(self.guest, self.debugger)
            assert stop is not None
            assert stop.reason is Reason.BREAKPOINT
            vcpu = stop.vcpu
        return vcpu

    def step(self, vcpu: VcpuId) -> bool:
        self.debugger.go(stepping={vcpu: range(0)})
        return run(self.guest, self.debugger) is not None


@pytest.fixture
def traveller(tuned: bool) -> Iterator[Traveller]:
    with booted("ticker", tuned=tuned) as guest:
        yield Traveller(guest)


@pytest.mark.promise("T-20")
@pytest.mark.parametrize(
    ("name", "start", "steps"),
    [
        ("ticker", "put_dec", 15),  # into a hypercall that blocks, and an event's handler
        ("usermode", "finish_success", 12),
        ("traps32", "expect_kernel_frame", 15),
    ],
)
def test_each_step_back_undoes_a_step(name: str, start: str, steps: int, tuned: bool) -> None:
    with booted(name, tuned=tuned) as guest:
        traveller = Traveller(guest)
        vcpu = traveller.to(start)
        forwards = [traveller.state(vcpu)]
        for _ in range(steps):
            assert traveller.step(vcpu)
            forwards.append(traveller.state(vcpu))
        for expected in reversed(forwards[:-1]):
            assert traveller.walker.step_back(vcpu) is not None
            assert traveller.state(vcpu) == expected


def test_back_through_breakpoints_and_on_again(traveller: Traveller, tuned: bool) -> None:
    guest, debugger = traveller.guest, traveller.debugger
    debugger.set_breakpoints(guest.domid, [guest.symbols["put_dec"]])
    forwards = []
    debugger.go()
    for _ in range(6):
        stop = run(guest, debugger)
        assert stop is not None
        forwards.append(traveller.state(stop.vcpu))
        debugger.go(passing=[stop.vcpu])
    for expected in reversed(forwards[:-1]):
        stop = traveller.walker.run_back()
        assert stop is not None
        assert traveller.state(stop.vcpu) == expected
    assert traveller.walker.run_back() is None
    digest = history(guest)
    debugger.set_breakpoints(guest.domid, [])
    debugger.go()
    assert run(guest, debugger) is None
    assert (digest.summary(), guest.console.text) == undisturbed("ticker", tuned=tuned)


def test_back_to_where_data_were_written(traveller: Traveller) -> None:
    guest, debugger = traveller.guest, traveller.debugger
    vcpu = traveller.to("put_dec")
    debugger.set_breakpoints(guest.domid, [])
    cell = guest.symbols["start_info"]
    value = guest.memory.u64(cell)
    debugger.set_data(guest.domid, [Observed(cell, 8, reads=False, writes=True)])
    stop = traveller.walker.run_back()
    assert stop is not None
    assert (stop.reason, stop.vcpu) == (Reason.DATA, vcpu)
    assert guest.memory.u64(cell) == 0
    assert traveller.step(vcpu)
    assert guest.memory.u64(cell) == value


def test_several_vcpus(tuned: bool) -> None:
    with booted("smp32", tuned=tuned, vcpus=2) as guest:
        traveller = Traveller(guest)
        vcpu = traveller.to("second_start")
        assert vcpu == (guest.domid, 1)
        first, before = (guest.domid, 0), guest.vcpus[0].registers.rip
        assert traveller.step(vcpu)
        assert traveller.walker.step_back(first) is not None
        assert guest.vcpus[0].registers.rip != before
        assert traveller.step(first)
        assert guest.vcpus[0].registers.rip == before


def test_without_a_debugger(traveller: Traveller) -> None:
    vcpu = traveller.to("put_dec")
    here = traveller.state(vcpu)
    traveller.machine.hypervisor.end_debugging()
    before = traveller.machine.step_back("instruction")
    assert before < here[0]
    assert traveller.machine.run_back(before) == before
    traveller.machine.hypervisor.pcpu.step()
    assert traveller.state(vcpu) == here
    traveller.machine.run_back(traveller.machine.remembered.beginning)
    with pytest.raises(pyhv.PyhvError, match="no instruction is remembered"):
        traveller.machine.step_back("instruction")


def test_there_is_an_earliest_moment(traveller: Traveller) -> None:
    vcpu = traveller.guest.domid, 0
    assert traveller.walker.step_back(vcpu) is None
    assert traveller.step(vcpu)
    assert traveller.walker.step_back(vcpu) is not None
    assert traveller.walker.step_back(vcpu) is None


@pytest.mark.parametrize("symbol", ["puts", "event_upcall"])
def test_stops_on_the_way_to_what_has_come_in_inside_an_exit(symbol: str) -> None:
    """Forwards again: what an observer has typed comes in at the same exit, stops or not."""
    with booted("ticker", tuned=True) as guest:
        machine = machine_of(guest)
        machine.keep_history()
        hypervisor = machine.hypervisor
        start, came_in = hypervisor.position, list[Position]()

        class Typist:
            exits = 0

            def exit(self, _record: object) -> None:
                self.exits += 1
                if self.exits == 30:
                    came_in.append(hypervisor.position)
                    hypervisor.input(hypervisor.residents[guest.domid].domain, b"typed")

        typist = Typist()
        hypervisor.observe(typist)
        machine.run(exits=40)
        hypervisor.unobserve(typist)
        assert machine.remembered.go_to(start) == start
        debugger = debug(guest)
        debugger.set_breakpoints(guest.domid, [guest.symbols[symbol]])
        stops, waiting = [], list[bool]()
        debugger.go()
        while guest.end is None and (stop := run(guest, debugger)) is not None:
            stops.append(hypervisor.position)
            waiting.append(hypervisor.dom0.console(guest.domid).typed == 0)
            debugger.go(passing=[stop.vcpu])
        assert len(stops) > 8
        assert waiting == [position < came_in[0] for position in stops]
        assert True in waiting
        assert False in waiting
