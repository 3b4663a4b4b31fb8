# SPDX-License-Identifier: GPL-2.0-only
"""What a service and the command line need of `import pyhv`: own sinks, own pace, ends and copies."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pyhv
from pyhv.api.notes import GuestNotes, MachineNotes
from pyhv.board import FRAMES_A_DOMAIN, USUAL_DOMAINS
from pyhv.devices.console_log import LIMIT
from pyhv.images import source
from pyhv.images.progress import SilentProgress
from pyhv.observe import stats
from pyhv.state import construct, state
from pyhv.testing.guest_machine import HEADER, START, image_of
from pyhv.until import Outcome

OTHER = "12345678-1234-1234-1234-123456789abc"


@pytest.fixture
def machine() -> Iterator[pyhv.Machine]:
    with pyhv.Machine(memory="64M", virtual_time=True, measure=True) as made:
        yield made


class Taking:
    """A sink that takes what comes as long as it is `open`."""

    def __init__(self) -> None:
        self.data = b""
        self.open = True

    def output(self, data: bytes) -> bool:
        if self.open:
            self.data += data
        return self.open


# -- output ------------------------------------------------------------------------------------------------


def test_a_sink_gets_what_is_kept(machine: pyhv.Machine) -> None:
    guest, sink = machine.boot("ticker"), Taking()
    guest.expect("tick 1")
    before = guest.console.data
    guest.console.sink = sink
    guest.wait()
    assert before + sink.data == guest.console.data
    assert sink.data.endswith(b"SUCCESS\n")


def test_a_sink_that_takes_nothing_stops_nobody(machine: pyhv.Machine) -> None:
    """It gets all of it later, also when its guest has ended; until then nothing is kept either."""
    guest, other, sink = machine.boot("hello"), machine.boot("ticker"), Taking()
    guest.console.sink, sink.open = sink, False
    assert machine.run() is Outcome.ENDED
    assert other.console.text.endswith("SUCCESS\n")
    assert (sink.data, guest.console.data) == (b"", b"")
    assert machine.drain()
    sink.open = True
    assert not machine.drain()
    assert sink.data == guest.console.data
    assert sink.data.endswith(b"SUCCESS\n")


FLOOD = f"""
    mov r12d, 200
next:
    lea rdi, [rip + line]
    call puts
    dec r12d
    jnz next
    succeed
.data
line:
    .asciz "{"x" * 8000}\\n"
"""


def test_a_guest_that_floods_a_sink_waits_for_it(machine: pyhv.Machine) -> None:
    guest, sink = machine.boot(image_of(HEADER + START + FLOOD), name="flood", memory="4M"), Taking()
    guest.console.sink, sink.open = sink, False
    machine.run(seconds=0.03)
    assert machine.hypervisor.dom0.console(guest.domid).log.room == 0
    assert (guest.end, guest.console.position) == (None, 0)
    other = machine.boot("hello")
    assert other.wait().reason == "poweroff", "others run meanwhile"
    sink.open = True
    assert guest.wait().reason == "poweroff"
    assert sink.data.count(b"x" * 8000 + b"\n") == 200
    assert len(sink.data) > LIMIT
    assert sink.data.endswith(guest.console.data)


def test_no_more_is_kept_than_is_wanted(machine: pyhv.Machine) -> None:
    guest, nothing = machine.boot("ticker"), machine.boot("hello")
    guest.console.keep, nothing.console.keep = 20, 0
    machine.run()
    assert 20 <= len(guest.console.data) <= 40
    assert guest.console.position > 100
    assert guest.console.text.endswith("SUCCESS\n")
    assert nothing.console.data == b""
    assert nothing.console.position > 100


def test_what_goes_to_the_hypervisors_console(machine: pyhv.Machine) -> None:
    said: list[tuple[str, bytes]] = []
    stop = machine.on("console_io", lambda guest, text: said.append((guest.name, text)))
    words = """
    xor edi, edi                                # CONSOLEIO_write
    mov esi, 4
    lea rdx, [rip + words]
    hypercall console_io
    succeed
.data
words:
    .ascii "BUG\\n"
"""
    image = image_of(HEADER + START + words)
    machine.boot(image, name="teller", memory="4M").wait()
    assert said == [("teller", b"BUG\n")]
    stop()
    machine.boot(image, memory="4M").wait()
    assert len(said) == 1


# -- input -------------------------------------------------------------------------------------------------


def test_offered_is_taken_as_there_is_room(machine: pyhv.Machine) -> None:
    guest = machine.boot("ticker")
    room = guest.offer(b"x" * 5000)
    assert 0 < room < 5000
    assert guest.offer(b"more") == 0
    waiting = machine.boot("ticker")
    waiting.send(b"y" * 5000)
    assert waiting.offer(b"z") == 0, "what was sent before comes first"
    machine.run()
    assert guest.offer(b"x" * 5000) == 5000, "who has ended takes all, and reads none"
    guest.send("never read")
    assert construct(MachineNotes, machine.snapshot().notes, "").typed == {}


def test_a_step_has_a_limit(machine: pyhv.Machine) -> None:
    machine.boot("usermode")
    assert machine.step(1000)
    assert machine.hypervisor.now() < 20_000
    while machine.step():
        pass
    assert machine.hypervisor.now() > 20_000


# -- ends --------------------------------------------------------------------------------------------------


def test_a_crash_is_reported(machine: pyhv.Machine) -> None:
    guest = machine.boot(
        image_of(HEADER + START + '    print "before\\n"\n    xor esp, esp\n    ud2\n'),
        name="crasher",
        memory="4M",
    )
    assert guest.crash_report() is None
    end = guest.wait()
    assert end.reason == "crash"
    assert end.report is not None
    assert end.report.registers.rsp == 0
    report = guest.crash_report()
    assert report is not None
    assert report.startswith("Domain 1 (crasher) crashed at ")
    assert "in kernel mode, at " in report
    assert report.endswith("Last lines of its console:\n  before\n")
    assert (guest.crash_report([b"other"]) or "").endswith("console:\n  other\n")


def test_what_a_guest_has_done_is_known_at_its_end(machine: pyhv.Machine) -> None:
    guest = machine.boot("hello")
    machine.run(exits=10)
    known = guest.hypercalls
    end = guest.wait()
    assert end.report is None
    assert guest.crash_report() is None
    assert sum(end.counts.hypercalls) > sum(known.values())
    assert sum(end.counts.exits) >= 10
    assert stats.collect(machine.hypervisor, 1).handler_ns > 0, "the machine measures"


def test_suspended_is_no_end(machine: pyhv.Machine) -> None:
    suspend = """
    push 2
    mov edi, 2                                  # SCHEDOP_shutdown
    mov rsi, rsp
    hypercall sched_op
    succeed
"""
    guest = machine.boot(image_of(HEADER + START + suspend), name="sleeper", memory="4M")
    assert not guest.suspended
    assert machine.run() is Outcome.ENDED
    assert guest.suspended
    assert (guest.end, guest.state) == (None, "---s--")
    guest.resume()
    assert not guest.suspended
    assert guest.wait().reason == "poweroff"
    assert not guest.suspended


# -- several, and copies -----------------------------------------------------------------------------------


def test_what_was_found_with_more_words_is_booted(machine: pyhv.Machine) -> None:
    found = replace(source.resolve("hello", SilentProgress), name="mine", memory=5)
    guest = machine.boot(found)
    assert guest.name == "mine"
    assert "memory: 1280 pages" in guest.expect(r"memory: \d+ pages").text


def test_couples_belong_together(machine: pyhv.Machine) -> None:
    pong, ping, alone, last = (machine.boot(name, memory="4M") for name in ("pong", "ping", "hello", "hello"))
    machine.introduce_peers((ping, last))
    peers = [int(machine.hypervisor.store.read(f"/local/domain/{n}/data/peer")) for n in range(1, 5)]
    assert peers == [alone.domid, last.domid, pong.domid, ping.domid]
    assert machine.guests == [pong, ping, alone, last]


def test_more_guests_than_usual() -> None:
    """Xen keeps frames for each, and none more for fewer."""
    frames = []
    for count in (1, USUAL_DOMAINS, USUAL_DOMAINS + 100):
        with pyhv.Machine(memory="4M", max_domains=count) as machine:
            frames.append(machine.hypervisor.ram.frames)
    assert frames[0] == frames[1] == frames[2] - 100 * FRAMES_A_DOMAIN


def test_another_uuid(machine: pyhv.Machine) -> None:
    guest, other = machine.boot("ticker", memory="4M"), machine.create("hello", memory="4M")
    guest.expect("tick 1")
    old, before = guest.uuid, machine.snapshot()
    guest.change_uuid(OTHER.upper())
    assert guest.uuid == OTHER
    store = machine.hypervisor.store
    assert store.read(f"/local/domain/{guest.domid}/vm") == f"/vm/{OTHER}".encode()
    assert store.read(f"/vm/{OTHER}/name") == b"ticker"
    assert not store.exists(f"/vm/{old}")
    for wrong, why in ((other.uuid, "hello has the UUID"), ("x", "'x' is not a UUID")):
        with pytest.raises(pyhv.PyhvError, match=why):
            guest.change_uuid(wrong)
    guest.change_uuid(OTHER)
    after = machine.snapshot()
    machine.revert(before)
    assert (guest.uuid, machine.domains["ticker"]) == (old, guest)
    machine.revert(after)
    assert (guest.uuid, machine.domains["ticker"]) == (OTHER, guest)
    assert guest.wait().reason == "poweroff"
    assert machine.audit() == []
    with pytest.raises(pyhv.PyhvError, match="ticker has ended, so it cannot have another UUID"):
        guest.change_uuid(old)


def test_a_guest_that_has_removed_its_nodes_can_be_asked(machine: pyhv.Machine) -> None:
    guest, store = machine.create("hello", memory="4M"), machine.hypervisor.store
    for node in ("control/shutdown", "control"):
        store.remove(f"/local/domain/1/{node}")
        guest.shutdown()
        assert store.read("/local/domain/1/control/shutdown") == b"poweroff"
        assert store.permissions("/local/domain/1/control/shutdown") == ["n1"]


@pytest.mark.promise("S-4")
@pytest.mark.parametrize("named", [b"/vm/", b"/vm//x", b"/vm/a b", b"/vm/" + b"x" * 3000, b"/vm/\xff", b"/"])
def test_a_node_that_no_uuid_has(machine: pyhv.Machine, named: bytes) -> None:
    """As a store from a file may have it: what is not the domain's by its name stays where it is."""
    guest, store = machine.boot("hello", memory="4M"), machine.hypervisor.store
    for use in (lambda: guest.change_uuid(OTHER), guest.wait):
        store.write("/local/domain/1/vm", named)
        use()
    assert guest.end is not None
    assert store.exists("/local")
    assert machine.audit() == []


def test_a_snapshot_keeps_how_a_guest_is_judged(machine: pyhv.Machine, tmp_path: Path) -> None:
    machine.boot("ticker").verdict = "pyhv"
    snapshot = machine.snapshot()
    snapshot.save(tmp_path / "x.snap")
    with pyhv.Machine.of(pyhv.Snapshot.load(tmp_path / "x.snap"), measure=True) as again:
        ticker = again.domains["ticker"]
        assert ticker.verdict == "pyhv"
        assert again.snapshot().about.guests == snapshot.about.guests
        ticker.console.sink = sink = Taking()
        ticker.wait()
        assert sink.data.endswith(b"SUCCESS\n")
        assert stats.collect(again.hypervisor, 1).handler_ns > 0


@pytest.mark.promise("S-4")
def test_a_uuid_in_a_file_is_one(machine: pyhv.Machine) -> None:
    machine.boot("hello")
    snapshot = machine.snapshot()
    notes = construct(MachineNotes, snapshot.notes, "notes")
    guests: list[GuestNotes] = [replace(one, uuid="no UUID") for one in notes.guests]
    wrong = replace(snapshot, notes=state(replace(notes, guests=guests)))
    with pytest.raises(pyhv.PyhvError, match="has a guest with the UUID 'no UUID', which is none"):
        pyhv.Machine.of(wrong)
