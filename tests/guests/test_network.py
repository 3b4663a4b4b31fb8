# SPDX-License-Identifier: GPL-2.0-only
"""Guests on a network hear each other, the same in every run; and who is outside is in the recording."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from frames import ethernet

import pyhv
from pyhv.errors import ConfigError, EnvironmentProblem
from pyhv.net import stream
from pyhv.net.frame import Frame
from pyhv.net.mac import BROADCAST
from pyhv.observe.digest import Digest
from pyhv.until import Outcome

ETHERTYPE, LAST = 0x88B5, 20


def number_of(frame: bytes) -> int:
    """What a guest says (`pyhv/guests/net.S`)."""
    return int.from_bytes(frame[14:18], "little") if frame[12:14] == b"\x88\xb5" else 0


def saying(number: int) -> bytes:
    return ethernet(number.to_bytes(4, "little") + bytes(42), ETHERTYPE, to=BROADCAST)


def digested(machine: pyhv.Machine) -> Digest:
    digest = Digest()
    machine.on("exit", digest.exit)
    return digest


def counted(guests: list[pyhv.Guest]) -> bool:
    return all("counted to 20\nSUCCESS\n" in guest.console.text for guest in guests)


@pytest.mark.parametrize("virtual", [True, False])
def test_guests_hear_each_other(tmp_path: Path, virtual: bool) -> None:
    with pyhv.Machine(memory="64M", virtual_time=virtual) as machine:
        free = machine.hypervisor.frames.free_count
        capture = machine.capture(tmp_path / "lan.pcap")
        guests = [machine.boot("net", memory="16M") for _ in range(2)]
        assert machine.run(seconds=20) is Outcome.ENDED
        assert counted(guests)
        assert capture.frames >= LAST
        assert machine.audit() == []
        assert machine.hypervisor.frames.free_count == free
        assert machine.hypervisor.dom0.networks.switches == {}


def test_switches_are_apart() -> None:
    with pyhv.Machine(memory="80M", virtual_time=True) as machine:
        guests = [machine.boot("net", memory="16M", nets=[f"switch={name}"]) for name in ("a", "b", "a", "b")]
        machine.run(seconds=20)
        assert counted(guests)


def test_vlans_are_apart() -> None:
    with pyhv.Machine(memory="80M", virtual_time=True) as machine:
        guests = [machine.boot("net", memory="16M", nets=[f"switch=lan.{vlan}"]) for vlan in (10, 20, 10, 20)]
        machine.run(seconds=20)
        assert counted(guests)


def test_nobody_is_there() -> None:
    with pyhv.Machine(memory="32M", virtual_time=True) as machine:
        guest = machine.boot("net", memory="16M", nets=["switch"])
        machine.run(seconds=20)
        assert "FAILURE: nobody has said anything" in guest.console.text


def test_without_a_device() -> None:
    with pyhv.Machine(memory="32M", virtual_time=True) as machine:
        guest = machine.boot("net", memory="16M", nets=[])
        machine.run(seconds=20)
        assert "FAILURE: there is no network device" in guest.console.text


# -- the same run ------------------------------------------------------------------------------------------


def two(machine: pyhv.Machine, net: str = "switch,rate=100Kb/s@10ms") -> list[pyhv.Guest]:
    """Two guests that count, slowly: there is always something in the works."""
    return [machine.boot("net", memory="16M", nets=[net]) for _ in range(2)]


def finished(machine: pyhv.Machine) -> str:
    """The digest of the rest of a run, in which the guests count to the end."""
    digest = digested(machine)
    guests = machine.guests
    machine.run(seconds=20)
    assert counted(guests)
    assert machine.audit() == []
    return digest.summary()


@pytest.mark.promise("N-4")
def test_a_run_repeats(tmp_path: Path) -> None:
    def once(number: int) -> tuple[str, bytes]:
        with pyhv.Machine(memory="48M", virtual_time=True, seed=7) as machine:
            two(machine)
            path = tmp_path / f"{number}.pcap"
            machine.capture(path, "xenbr0")
            return finished(machine), path.read_bytes()

    assert once(1) == once(2)


@pytest.mark.promise("N-4")
@pytest.mark.parametrize("said", [1, 4, 11])
def test_it_goes_on_from_any_moment(tmp_path: Path, said: int) -> None:
    with pyhv.Machine(memory="48M", virtual_time=True, seed=7) as machine:
        two(machine)
        seen: list[int] = []
        machine.hypervisor.dom0.networks.watch(lambda frame: seen.append(number_of(frame.data)))
        machine.run(lambda: said in seen, seconds=20)
        assert machine.guests
        snapshot = machine.snapshot()
        rest = finished(machine)
        machine.revert(snapshot)
        assert finished(machine) == rest
        with pyhv.Machine.of(snapshot) as fork:
            assert finished(fork) == rest
        snapshot.save(tmp_path / "net.snap")
        with pyhv.load(tmp_path / "net.snap") as other:
            assert other.audit() == []
            assert finished(other) == rest


def test_devices_are_those_of_the_moment() -> None:
    with pyhv.Machine(memory="48M", virtual_time=True) as machine:
        one, other = two(machine, "switch")
        before = machine.snapshot()
        one.attach_net("switch=other,mac=00:16:3e:11:22:33")
        after = machine.snapshot()
        one.detach_net(1)
        machine.hypervisor.settle()
        assert list(machine.hypervisor.dom0.networks.switches) == ["xenbr0"]
        machine.revert(after)
        assert list(machine.hypervisor.dom0.networks.switches) == ["xenbr0", "other"]
        assert other.name in machine.domains
        machine.revert(before)
        assert list(machine.hypervisor.dom0.networks.switches) == ["xenbr0"]
        finished(machine)


# -- outside -----------------------------------------------------------------------------------------------


class Outside(threading.Thread):
    """Counts with a guest from outside, at a socket."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.wire = stream.connect(path)
        self.heard: list[int] = []

    def run(self) -> None:
        assert self.wire._peer is not None
        self.wire._peer.setblocking(True)
        self.say(1)
        while self.wire.open:
            for frame in self.wire.receive():
                number = number_of(frame)
                self.heard.append(number)
                if number and number < LAST:
                    self.say(number + 1)

    def say(self, number: int) -> None:
        self.wire.send(Frame(saying(number)))
        self.wire.flush()


def with_somebody(
    tmp_path: Path, act: Callable[[pyhv.Machine, pyhv.Guest, Outside], None], **options: object
) -> None:
    path = tmp_path / "lan.sock"
    with pyhv.Machine(memory="32M", **options) as machine:  # type: ignore[arg-type]
        guest = machine.boot("net", memory="16M", nets=[f"socket:{path}"])
        outside = Outside(path)
        outside.start()
        act(machine, guest, outside)
    outside.join(10)
    assert not outside.is_alive()
    assert not path.exists()


@pytest.mark.parametrize("virtual", [True, False])
def test_a_guest_counts_with_somebody_outside(tmp_path: Path, virtual: bool) -> None:
    def act(machine: pyhv.Machine, guest: pyhv.Guest, outside: Outside) -> None:
        assert machine.run(seconds=9) is Outcome.ENDED
        assert counted([guest])
        assert max(outside.heard) >= LAST - 1

    with_somebody(tmp_path, act, virtual_time=virtual)


@pytest.mark.promise("N-5")
@pytest.mark.parametrize("virtual", [True, False])
def test_what_comes_from_outside_is_in_the_recording(tmp_path: Path, virtual: bool) -> None:
    """The replay has nobody outside, and makes no socket."""
    said: list[str] = []

    def act(machine: pyhv.Machine, guest: pyhv.Guest, _outside: Outside) -> None:
        digest = digested(machine)
        assert machine.run(seconds=9) is Outcome.ENDED
        said.append(guest.console.text)
        said.append(digest.summary())

    record = tmp_path / "run.rec"
    with_somebody(tmp_path, act, virtual_time=virtual, record=record)
    with pyhv.Replay(record, verify=True) as replay:
        guests: list[pyhv.Guest] = list(replay.machine.guests)
        replay.on_guest = guests.append
        digest = digested(replay.machine)
        assert replay.run() is None
        assert replay.compared > 0
        assert guests[0].console.text == said[0]
        assert digest.summary() == said[1]
        assert not (tmp_path / "lan.sock").exists()


def test_who_goes_back_sends_nothing_twice(tmp_path: Path) -> None:
    with pyhv.Machine(memory="48M", virtual_time=True, history=True) as machine:
        capture = machine.capture(tmp_path / "lan.pcap")
        guests = two(machine, "switch")
        machine.run(lambda: capture.frames >= 5, seconds=5)
        before = capture.frames
        for _ in range(3):
            machine.step_back("turn")
        assert capture.frames == before
        assert guests[0].name in machine.domains


def test_what_is_not_to_be_had_is_told_before_anything_is_there(tmp_path: Path) -> None:
    with pyhv.Machine(memory="32M", virtual_time=True) as machine:
        free = machine.hypervisor.frames.free_count
        with pytest.raises(EnvironmentProblem, match="nobody serves a network there"):
            machine.boot("net", memory="16M", nets=[f"socket:{tmp_path}/none.sock,server=off"])
        (tmp_path / "file").write_text("precious")
        with pytest.raises(EnvironmentProblem, match="the name is taken"):
            machine.boot("net", memory="16M", nets=["switch", f"socket:{tmp_path}/file"])
        with pytest.raises(ConfigError, match=r"is that of vif1\.0"):
            machine.boot("net", memory="16M", nets=["switch,mac=00:16:3e:00:00:01"] * 2)
        with pytest.raises(ConfigError, match="no switch and no device 'lan'"):
            machine.capture(tmp_path / "lan.pcap", "lan")
        assert machine.guests == []
        assert machine.hypervisor.frames.free_count == free
        assert machine.hypervisor.dom0.networks.switches == {}
        assert not machine.wires


def test_two_guests_share_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "lan.sock"
    with pyhv.Machine(memory="48M", virtual_time=True) as machine:
        guests = [machine.boot("net", memory="16M", nets=[f"socket:{path}"]) for _ in range(2)]
        wire = stream.connect(path)
        machine.run(seconds=5)
        assert counted(guests)
        heard: list[int] = []
        while frames := wire.receive():
            heard += map(number_of, frames)
        assert set(range(2, LAST)) <= set(heard)
        wire.close()


# -- attackers ---------------------------------------------------------------------------------------------


@pytest.mark.promise("N-3")
@pytest.mark.parametrize("virtual", [True, False])
def test_an_attacker_beside_two_that_count(virtual: bool) -> None:
    with pyhv.Machine(memory="96M", virtual_time=virtual) as machine:
        attacker = machine.boot("hostile/netfront", memory="16M", nets=["switch"])
        guests = two(machine, "switch")
        assert machine.run(seconds=20) is Outcome.ENDED
        assert "SUCCESS" in attacker.console.text, attacker.console.text[-500:]
        assert counted(guests)
        assert machine.audit() == []
