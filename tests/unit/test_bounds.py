# SPDX-License-Identifier: GPL-2.0-only
"""Bounds that no other test reaches: what the hypervisor remembers for a guest, and refused sizes."""

from collections.abc import Iterator

import pytest
from lanes import plain_lane

from pyhv.abi.numbers import ConsoleIo, Hypercall
from pyhv.abi.x86 import PTE_P
from pyhv.abi.xs_wire import Message
from pyhv.address import Va
from pyhv.board import MAX_MEMORY_PAGES
from pyhv.cpu import engine as engine_module
from pyhv.devices.console_log import LIMIT, PIECE
from pyhv.devices.store_backend import StoreBackend
from pyhv.domain.config import DomainConfig
from pyhv.errors import ConfigError
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.mmu import memory as memory_module
from pyhv.mmu import paging
from pyhv.mmu.tables import MOST_FLUSH_PAGES
from pyhv.sched.credit import Credit
from pyhv.testing.guest_machine import PAGES, Paused, Sink, image_of, machine, paused
from pyhv.traps.dispatch import Dispatcher
from pyhv.traps.report import STACK_WORDS, capture
from pyhv.xenstore.wire import Connection, encode


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        yield made


def mapped(guest: Paused) -> list[int]:
    """The pages of the first MiB or so that the guest's kernel can reach."""
    memory = guest.domain.memory
    first = guest.scratch & ~0xFFFFF
    entries = {va: memory.leaf_entry(Va(va)) for va in range(first, first + 300 * 4096, 4096)}
    found = [va for va, entry in entries.items() if entry is not None and memory.ram.q[entry >> 3] & PTE_P]
    assert len(found) > 100
    return found


@plain_lane("the bound is a constant in the code")
@pytest.mark.promise("L-22")
def test_translations_that_are_remembered(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pointers into ever more pages: the oldest translations are forgotten."""
    monkeypatch.setattr(memory_module, "_MOST_LEAVES", 50)
    memory = guest.domain.memory
    for va in mapped(guest):
        memory.for_read(va)
        assert len(memory.leaves) <= 50
        assert sum(len(table) for view in memory._views.values() for table in view) <= 100


@plain_lane("the bound is a constant in the code")
@pytest.mark.promise("L-22")
def test_merges_that_are_remembered(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest may pair each of its L4s with each other."""
    monkeypatch.setattr(paging, "_MOST_MERGES", 20)
    cache, l4 = guest.domain.cache, guest.vcpu.paging.kernel_l4
    for user in range(1, 100):
        cache.may_merge(l4, user)
        assert len(cache._mergeable) <= 20


@pytest.mark.promise("L-22")
def test_code_pages_that_are_remembered(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_MOST_CODE_PAGES", 20)
    engine = guest.domain.engine
    for va in mapped(guest):
        assert engine._code_page(va) is not None
        assert len(engine._code_pages) <= 20


@pytest.mark.promise("L-19")
def test_pages_to_be_flushed(guest: Paused) -> None:
    tables = guest.domain.tables
    tables.flushed()
    for va in range(0, 1000 * 4096, 4096):
        tables.flush_page(va)
    assert len(tables.flush_pages) == MOST_FLUSH_PAGES
    assert tables.flush, "the rest is flushed all the same"


@pytest.mark.promise("L-14")
def test_a_crash_report_is_small(guest: Paused) -> None:
    dispatcher: Dispatcher = guest.dispatcher
    for _ in range(50):
        assert guest.hypercall(Hypercall.XEN_VERSION) == 4 << 16 | 17
    report = capture(dispatcher.cpu, "a test", 0, tuple(dispatcher.last_exits()))
    assert len(report.stack) <= STACK_WORDS
    assert len(report.last_exits) == 16
    assert len(report.code) <= 64


@pytest.mark.promise("L-13")
def test_text_for_the_hypervisors_console_comes_in_pieces(guest: Paused) -> None:
    """The hypervisor holds one piece at a time, however much is written."""
    heard: list[int] = []
    guest.machine.services.debug_sink = lambda _domain, text: heard.append(len(text))
    assert guest.console_io(ConsoleIo.WRITE, 10_000, guest.scratch) == 0
    assert heard == [4096, 4096, 1808]


@pytest.mark.promise("L-12")
def test_console_output_is_never_held_back(guest: Paused) -> None:
    """One ring is all that a notification moves, and nothing of it stays when the turn ends."""
    dom0, domid = guest.machine.dom0, guest.domain.domid
    console = dom0.console(domid)
    page = console.page
    assert page is not None
    page.write_u32(3080, 0)
    for claimed, moved in ((2048, 2048), (2049, 0), (0xFFFF_FFFF, 0)):
        guest.sink.data = b""
        page.write_u32(3080, 0)
        page.write_u32(3084, claimed)
        dom0.event(console.name)
        assert guest.sink.data == b"", "it goes on between two turns"
        dom0.turn_ended(domid, None)
        assert len(guest.sink.data) == moved


@pytest.mark.promise("L-12")
def test_a_sink_that_takes_nothing_holds_back_its_guest_alone(guest: Paused) -> None:
    """The log fills up to its limit; then the ring is left as it is."""
    dom0, domid = guest.machine.dom0, guest.domain.domid
    console = dom0.console(domid)
    page = console.page
    assert page is not None
    taken: list[bytes] = []
    willing = False

    class Unwilling:
        def output(self, data: bytes) -> bool:
            if willing:
                taken.append(data)
            return willing

    console.log.sink = Unwilling()
    page.write_u32(3080, 0)
    page.write_u32(3084, 0)
    written = 0
    while page.read_u32(3080) == written & 0xFFFFFFFF:
        written += 2048
        page.write_u32(3084, written)
        dom0.event(console.name)
        dom0.turn_ended(domid, None)
        assert len(console.log) <= LIMIT
    assert written == LIMIT + 2048
    assert page.read_u32(3080) == LIMIT
    assert dom0.go_on()
    willing = True
    assert not dom0.go_on()
    assert page.read_u32(3080) == written, "the ring is consumed again"
    assert sum(map(len, taken)) == written
    assert max(map(len, taken)) <= PIECE


@pytest.mark.promise("L-16")
@pytest.mark.parametrize(("vcpus", "fine"), [(0, False), (1, True), (32, True), (33, False)])
def test_how_many_vcpus(vcpus: int, fine: bool) -> None:
    with machine() as made:
        image = load_image(image_of(Paused.SOURCE), "guest")
        config = DomainConfig("guest", PAGES, vcpus=vcpus)
        if fine:
            assert len(made.create(image, config, console=Sink()).vcpus) == vcpus
        else:
            with pytest.raises(ConfigError, match="1 to 32"):
                made.create(image, config, console=Sink())


@pytest.mark.promise("L-17")
@pytest.mark.parametrize("pages", [0, -1, MAX_MEMORY_PAGES + 1])
def test_machines_that_are_refused(pages: int) -> None:
    with pytest.raises(ConfigError, match="32 GiB"):
        Machine(MachineConfig(pages))


@pytest.mark.promise("T-6")
def test_the_periods_of_the_scheduler() -> None:
    scheduler = Credit()
    assert (scheduler.timeslice, scheduler.tick, scheduler.ratelimit) == (30_000_000, 10_000_000, 1_000_000)


@pytest.mark.promise("T-4")
def test_lists_are_charged_and_give_way_after_heavy_steps(guest: Paused) -> None:
    """A table that is approved counts as sixteen steps, and the clock is looked at at once."""
    call, tables = guest.dispatcher.call, guest.domain.tables
    charged: list[int] = []
    call.preempted = lambda steps: bool(charged.append(steps)) or True  # type: ignore[method-assign]
    tables.take_work()
    assert not call.gives_way(1, 100)
    assert charged == []
    tables._work = 3
    assert call.gives_way(2, 100)
    assert charged == [48]
    assert call.gives_way(64, 100)
    assert not call.gives_way(100, 100)
    assert charged == [48, 64, 36], "the last step never gives way, but it is paid for"


@pytest.mark.promise("T-4")
def test_requests_to_the_store_are_charged(guest: Paused) -> None:
    """A write that 100 watches of another domain hear of costs its author 101 units."""
    store = guest.machine.store
    store.introduce(77)
    store.write("/shared", "")
    store.set_permissions("/shared", ["b0"])
    store_end = next(
        end for end in guest.machine.dom0.devices(guest.domain.domid) if isinstance(end, StoreBackend)
    )
    listener = Connection(store, 77)
    for number in range(100):
        listener.feed(encode(Message.WATCH, 0, 0, b"/shared\0%d\0" % number))
        listener.take(1 << 16)
    before = store.work
    store_end.connection.feed(encode(Message.WRITE, 1, 0, b"/shared\0x"))
    assert b"OK" in store_end.connection.take(100)
    assert store.work - before == 101
