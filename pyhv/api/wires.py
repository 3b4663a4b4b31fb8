# SPDX-License-Identifier: GPL-2.0-only
"""What a machine's networks lead to outside: a wire for each uplink, while somebody runs the machine.

    guest ── vif ── Switch ── Uplink ── Wire ── passt, QEMU, another machine

A machine has uplinks because its guests' devices ask for them (`pyhv.devices.networks`); whether somebody
is outside is the affair of whoever runs it. Frames come in at the machine's door, between two turns, and so
are part of a recording. A machine that goes on from a snapshot, or is a fork, has no wires until they are
opened (`open_all`).
"""

import select
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyhv.devices.netback import NetBackend
from pyhv.domain.domain import Domain
from pyhv.machine import Machine as Hypervisor
from pyhv.net.mac import XEN_OUI
from pyhv.net.spec import NetSpec
from pyhv.until import Outcome, Until

if TYPE_CHECKING:
    from pyhv.net.stream import Wire

PIECE_NS: Final = 5_000_000
"""Machine time after which a guest that runs is paused, to see what has come."""
_NOBODY: Final = XEN_OUI + bytes(3)
"""Who asks whether passt is ready."""


class Wires:
    """The wires of one machine, by uplink. It is waited for as one descriptor (`fileno`)."""

    def __init__(self, machine: Hypervisor) -> None:
        self._machine = machine
        self._wires: dict[str, Wire] = {}
        self._epoll: select.epoll | None = None
        self._registered: dict[int, tuple[Wire, int]] = {}
        self._lost: list[str] = []

    def __bool__(self) -> bool:
        """There are some."""
        return bool(self._wires)

    @property
    def connected(self) -> bool:
        """Whether somebody is outside from whom something may come."""
        return any(wire.connected for wire in self._wires.values())

    # -- beginning and end -------------------------------------------------------------------------------

    @contextmanager
    def opened(self, specs: Sequence[NetSpec]) -> "Iterator[list[Wire | None]]":
        """Open what devices need that are about to be: a wire for each, or None. EnvironmentProblem.

        Unless somebody takes them (`plug`), they are closed again.
        """
        with ExitStack() as stack:
            wires = [self._open(spec) for spec in specs]
            for wire in wires:
                if wire is not None:
                    stack.callback(wire.close)
            yield wires
            stack.pop_all()

    def _open(self, spec: NetSpec) -> "Wire | None":
        from pyhv.net import passt, stream  # most machines have no wires

        if spec.forwards is not None:
            return passt.start(spec.forwards, "user", _NOBODY)
        if spec.socket is None or spec.socket.path in self._wires:
            return None
        path = Path(spec.socket.path)
        return stream.listen(path) if spec.socket.listens else stream.connect(path)

    def plug(self, domain: Domain, wires: "Sequence[Wire | None]") -> None:
        """A domain's last devices are there, for which these wires were opened."""
        devices = [one for one in self._machine.dom0.devices(domain.domid) if isinstance(one, NetBackend)]
        for device, wire in zip(devices[-len(wires) :] if wires else [], wires, strict=True):
            if wire is not None:
                self._connect(device.uplink, wire)

    def attach(self, domain: Domain, spec: NetSpec) -> int:
        """Plug a device in while its domain lives; returns its number. ConfigError, EnvironmentProblem."""
        with self.opened([spec]) as wires:
            number = self._machine.attach_net(domain, spec)
            self.plug(domain, wires)
        return number

    @property
    def missing(self) -> list[str]:
        """Uplinks that lead nowhere, for want of a wire."""
        return [name for name in self._machine.dom0.networks.uplinks if name not in self._wires]

    def open_all(self) -> None:
        """Open wires for all uplinks that have none. EnvironmentProblem."""
        for name in self.missing:
            wire = self._open(self._machine.dom0.networks.uplinks[name].spec)
            assert wire is not None
            self._connect(name, wire)

    def _connect(self, name: str, wire: "Wire") -> None:
        self._wires[name] = wire
        self._machine.dom0.networks.uplinks[name].sink = wire.send
        if self._epoll is None:
            self._epoll = select.epoll()

    def close(self) -> None:
        """End them all."""
        for wire in self._wires.values():
            wire.close()
        self._wires.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    # -- frames ------------------------------------------------------------------------------------------

    def exchange(self) -> None:
        """Let frames in and out, without waiting."""
        uplinks = self._machine.dom0.networks.uplinks
        for name, wire in list(self._wires.items()):
            uplink = uplinks.get(name)
            if uplink is None:  # the last guest that used it is gone
                wire.close()
                del self._wires[name]
                continue
            wire.flush()
            if not uplink.crowded:
                for data in wire.receive():
                    self._machine.receive_frame(name, data)
                wire.flush()
            if not wire.open:
                self._has_ended(name, wire)
        self._register()

    def _has_ended(self, name: str, wire: "Wire") -> None:
        """The other side has gone for good: devices that have nothing else are taken away."""
        wire.close()
        del self._wires[name]
        why = wire.problem or "the other side has gone"
        self._lost.append(f"{name} leads nowhere any more: {why}")
        machine = self._machine
        machine.dom0.networks.uplinks[name].sink = None
        for resident in machine.residents:
            for device in list(machine.dom0.devices(resident.domain.domid)):
                if (
                    isinstance(device, NetBackend)
                    and device.uplink == name
                    and device.spec.forwards is not None
                ):
                    machine.detach_net(resident.domain, device.name.handle)

    def take_lost(self) -> list[str]:
        """What is to be told of wires that have ended since: sentences."""
        lost, self._lost = self._lost, []
        return lost

    # -- waiting -----------------------------------------------------------------------------------------

    def _register(self) -> None:
        """Wait for what there is to wait for."""
        if self._epoll is None:
            return
        wanted = {}
        for name, wire in self._wires.items():
            crowded = self._machine.dom0.networks.uplinks[name].crowded
            events = (0 if crowded else select.EPOLLIN) | (select.EPOLLOUT if wire.waits else 0)
            wanted[wire.fileno()] = wire, events
        if wanted == self._registered:
            return
        for number in self._registered:
            if number not in wanted:
                self._forget(number)
        for number, (wire, events) in wanted.items():
            known = self._registered.get(number)
            if known == (wire, events):
                continue
            self._forget(number)
            self._epoll.register(number, events)
        self._registered = wanted

    def _forget(self, number: int) -> None:
        """No longer wait for a descriptor; closed ones are forgotten by themselves."""
        assert self._epoll is not None
        try:
            self._epoll.unregister(number)
        except OSError:
            return

    def fileno(self) -> int:
        """What to wait on."""
        self._register()
        return -1 if self._epoll is None else self._epoll.fileno()

    def pump(self) -> bool:
        """Something has come, or can go. False: there is no wire any more."""
        self.exchange()
        return bool(self._wires)

    def wait(self, seconds: float | None) -> bool:
        """Wait so long, or (None) until something comes; whether it has."""
        self._register()
        assert self._epoll is not None
        came = bool(self._epoll.poll(seconds))
        if came:
            self.exchange()
        return came


def run(machine: Hypervisor, wires: Wires, until: Until) -> Outcome:
    """`pyhv.machine.Machine.run`, while something may come from outside.

    As long as somebody is outside, time in which nobody can run passes as the host's does, also virtual time.
    """
    until.begin(machine)
    try:
        while True:
            wires.exchange()
            machine.settle()
            if machine.debugger is not None and machine.debugger.stop is not None:
                return Outcome.STOPPED
            outcome = until.outcome(machine)
            if outcome is not None:
                return outcome
            limit, now = until.limit(), machine.now()
            piece = now + PIECE_NS
            if machine.step(piece if limit is None else min(limit, piece)):
                continue
            due = machine.next_deadline()
            when = min((one for one in (due, limit) if one is not None), default=None)
            if not wires:
                if when is None:
                    return Outcome.DEADLOCK
                machine.advance_to(when)
                continue
            patience = None if when is None else max(when - now, 0) / 1e9
            if machine.clock.deterministic and when is not None and not wires.connected:
                patience = 0.0
            if not wires.wait(patience) and when is not None:
                machine.advance_to(when)
    finally:
        until.end(machine)
