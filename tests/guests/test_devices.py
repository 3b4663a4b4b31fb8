# SPDX-License-Identifier: GPL-2.0-only
"""Back ends: a device that is one class and one line, and consoles whose readers are slow or gone."""

import os
from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.numbers import PortState
from pyhv.address import Mfn
from pyhv.cli import consoles
from pyhv.devices import toolstack
from pyhv.devices.backend import Backend
from pyhv.devices.console_log import LIMIT
from pyhv.domain.config import DomainConfig
from pyhv.errors import ConfigError
from pyhv.loader.elf import load_image
from pyhv.machine import Machine
from pyhv.mmu.physical import FramePage
from pyhv.outside import Command
from pyhv.resident import Ended
from pyhv.state import Plain
from pyhv.testing.guest_machine import HEADER, SECOND, START, Paused, Sink, image_of, machine, paused
from pyhv.until import Outcome, When

PAGES = 1024
DELAY = 1_000_000
CHATTERER = (
    HEADER
    + START
    + """
again:
    print "the quick brown fox jumps over the lazy dog, and then once more, and again, and again\\n"
    jmp again
"""
)
"""Prints for ever."""


class Echo(Backend):
    """Adds one to the first word of its page, so many ns after each event, and rings."""

    kind: ClassVar[str] = "echo"
    due: int | None = None

    def event(self) -> None:
        """The answer comes later."""
        self.due = self.link.clock.now() + DELAY

    def next_deadline(self) -> int | None:
        return self.due

    def expire(self, _now: int) -> None:
        assert self.page is not None
        self.page.write_u32(0, self.page.read_u32(0) + 1)
        self.due = None
        self.notify()

    def state(self) -> dict[str, Plain]:
        return {"due": self.due}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        self.due = saved["due"]  # type: ignore[assignment]


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paused]:
    monkeypatch.setitem(toolstack.KINDS, Echo.kind, Echo)  # the one line
    with paused() as made:
        yield made


def attach(guest: Paused, va: int) -> tuple[Echo, int]:
    """Give the guest an echo device with the page at `va`; the device, and the guest's port."""
    dom0 = guest.machine.dom0
    port = guest.domain.events.alloc_unbound(DOMID_SELF, 0)
    device = Echo(dom0.link, guest.domain.domid)
    page = FramePage(guest.machine.physical, Mfn(guest.mfn(va)))
    dom0.attach(device, page, port)
    return device, port


def test_a_device_is_one_class_and_one_line(guest: Paused) -> None:
    made, domain = guest.machine, guest.domain
    device, port = attach(guest, guest.page(1))
    assert made.audit() == []
    assert made.next_deadline() == made.scheduler.next_event(made.now())
    domain.events.send(port)
    assert guest.words(guest.page(1), 1) == (0,)
    assert made.dom0.next_deadline() == made.now() + DELAY
    assert device.state() == {"due": made.now() + DELAY}
    made.pause(domain)
    made.run(When(lambda: made.dom0.next_deadline() is None), timeout_ns=SECOND)
    assert guest.words(guest.page(1), 1) == (1,)
    assert domain.events.is_pending(port)
    free = made.frames.free_count
    made.destroy(domain)
    made.settle()
    assert made.frames.free_count > free
    assert list(made.dom0.devices(domain.domid)) == []
    assert made.dom0.channels.ports() == {}
    assert made.audit() == []


def test_a_device_whose_page_is_something_else_is_not_attached(guest: Paused) -> None:
    table = guest.entry(guest.page(0)) >> 12
    port = guest.domain.events.alloc_unbound(DOMID_SELF, 0)
    dom0 = guest.machine.dom0
    with pytest.raises(ConfigError, match="echo"):
        dom0.attach(Echo(dom0.link, 1), FramePage(guest.machine.physical, Mfn(table)), port)
    assert [device.kind for device in dom0.devices(1)] == ["console", "store"]
    assert guest.domain.events.status(DOMID_SELF, port).state == PortState.UNBOUND
    device, _ = attach(guest, guest.page(1))
    with pytest.raises(ValueError, match="there already"):
        dom0.attach(
            Echo(dom0.link, 1), FramePage(guest.machine.physical, Mfn(guest.mfn(guest.page(2)))), port
        )
    assert device in list(dom0.devices(1))


# -- consoles and their readers ----------------------------------------------------------------------------


@pytest.mark.promise("I-19")
def test_one_reader_stops_and_another_guest_goes_on() -> None:
    reader, writer = os.pipe()
    pipe = os.fdopen(writer, "wb", buffering=0)
    outlet = consoles.Outlet(pipe, "a pipe", patient=False)
    ends: list[Ended] = []
    with pipe, machine(pages=2 * PAGES) as made:
        talker = made.create(
            load_image(image_of(CHATTERER), "talker"), DomainConfig("talker", PAGES), console=outlet
        )
        log = made.dom0.console(talker.domid).log
        assert made.run(When(lambda: not log.room), timeout_ns=60 * SECOND) is Outcome.STOPPED
        assert len(log) == LIMIT
        sink = Sink()
        image = load_image(image_of(HEADER + START + "    succeed\n"), "other")
        made.create(image, DomainConfig("other", PAGES), console=sink, on_end=ends.append)
        assert made.run(When(lambda: bool(ends)), timeout_ns=SECOND) is Outcome.STOPPED
        assert sink.data == b"SUCCESS\n", "nobody else waits"
        written = log.written
        made.run(timeout_ns=SECOND // 100)
        assert log.written == written, "the talker does"
        begun = os.read(reader, 1 << 16)
        assert begun.startswith(b"the quick brown fox")
        made.run(When(lambda: log.written > written), timeout_ns=SECOND)
        assert log.written > written, "its reader reads again, and it goes on"
        os.close(reader)
        made.run(When(lambda: outlet.closed), timeout_ns=SECOND)
        assert outlet.closed
        made.run(timeout_ns=SECOND // 100)
        assert len(log) < LIMIT, "nobody reads, and nobody waits"
        assert made.audit() == []


class Heard:
    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    def arrives(self, command: Command) -> None:
        pass

    def taken(self, command: Command, answer: object) -> None:
        self.seen.append((command.verb, answer))

    def at_rest(self) -> None:
        pass


def test_input_comes_in_by_one_door(guest: Paused) -> None:
    made, domain = guest.machine, guest.domain
    heard = Heard()
    made.door.listeners.append(heard)
    made.pause(domain)
    assert made.input(domain, b"abc") == 3
    made.advance_to(5000)
    assert made.input(domain, bytes(2000)) == 1021, "there is room for 1024"
    assert made.input(domain, b"x") == 0
    assert heard.seen == [("pause", None), ("input", 3), ("pass_time", None), ("input", 1021), ("input", 0)]
    made.destroy(domain)
    assert made.input(domain, b"abc") == 3


@pytest.mark.promise("I-19")
def test_a_sink_that_fails_leaves_a_machine_of_use(made: Machine) -> None:
    class Full:
        def output(self, _data: bytes) -> None:
            raise OSError("no space left")

    domain = made.create(
        load_image(image_of(CHATTERER), "talker"), DomainConfig("talker", PAGES), console=Full()
    )
    with pytest.raises(OSError, match="no space"):
        made.run(timeout_ns=SECOND)
    assert made.pcpu.running is None
    assert made.audit() == []
    made.dom0.console(domain.domid).log.sink = sink = Sink()
    made.run(timeout_ns=SECOND // 1000)
    assert sink.data.startswith(b"the quick brown"), "nothing was lost"


@pytest.fixture
def made() -> Iterator[Machine]:
    with machine(pages=2 * PAGES) as built:
        yield built
