# SPDX-License-Identifier: GPL-2.0-only
"""The networks of a machine: its switches, who is plugged in, and where they lead out.

    vif ── port ┐
                Switch "lan" ── port ── Uplink ── sink: what whoever runs the machine has there
    vif ── port ┘

A switch is there as long as somebody is plugged in. A device with a wire of its own has a switch to itself,
which is called like the device. What leads out is an `Uplink`: what comes in by one comes in at the
machine's door (`Machine.receive_frame`), and what goes out there is given to its sink, if it has one. So a
machine is the same with and without somebody outside, and a run can be had again.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

from pyhv.errors import ConfigError
from pyhv.net import mac
from pyhv.net.frame import Frame
from pyhv.net.spec import NetSpec
from pyhv.net.switch import Port, Switch
from pyhv.state import Plain, Said, entries, refusal, restore, typed

Tap = Callable[[Frame], None]


class Uplink:
    """A port of a switch that leads out."""

    def __init__(self, name: str, spec: NetSpec, silent: Callable[[], bool]) -> None:
        self._silent = silent
        self.spec = spec
        """A device that wants it: what is to be outside follows from that."""
        self.users = 0
        self.sink: Tap | None = None
        """Who takes what goes out; None: nobody is there."""
        self.port = Port(name, self._deliver)

    @property
    def crowded(self) -> bool:
        """Whether the one device that it leads to has enough waiting for it, and more had better not come."""
        switch = self.port.switch
        if self.spec.forwards is None or switch is None:
            return False
        return any(port.crowded() for port in switch.ports)

    def _deliver(self, frame: Frame) -> None:
        if self.sink is not None and not self._silent():
            self.sink(frame)


class Networks:
    """All switches of one machine."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("_seed", "_now"), "given: the machine's"),
        **dict.fromkeys(("uplinks", "_addresses"), "follow from the devices that are plugged in"),
        "_taps": "whoever looks on",
        "silent": "of whoever goes through a run again",
    }

    def __init__(self, seed: int, now: Callable[[], int]) -> None:
        self._seed = seed
        self._now = now
        self.switches: dict[str, Switch] = {}
        self.uplinks: dict[str, Uplink] = {}
        """By name: a socket's path, or `DEVICE:user`."""
        self.silent = False
        """Nobody is to see what goes by: it has gone by before."""
        self._addresses: dict[bytes, Port] = {}
        self._taps: list[Tap] = []

    # -- plugging ----------------------------------------------------------------------------------------

    def address(self, spec: NetSpec, domid: int, handle: int) -> bytes:
        """The address of a device."""
        return spec.mac or mac.derived(self._seed, domid, handle)

    def plug(self, name: str, address: bytes, spec: NetSpec, deliver: Tap) -> Port:
        """Plug a device in. ConfigError: another one has its name, or its address."""
        if any(name in (port.name for port in switch.ports) for switch in self.switches.values()):
            raise ConfigError(f"vifname={name}: another device of the machine is called so.")
        if address in self._addresses:
            other = self._addresses[address].name
            raise ConfigError(f"mac={mac.shown(address)} of {name} is that of {other}.")
        port = Port(name, deliver, spec.vlans)
        switch = self._switch(spec.switch or name)
        switch.attach(port)
        self._addresses[address] = port
        called = uplink_of(name, spec)
        if called:
            uplink = self.uplinks.get(called)
            if uplink is None:
                uplink = self.uplinks[called] = Uplink(called, spec, lambda: self.silent)
                switch.attach(uplink.port)
            uplink.users += 1
        return port

    def unplug(self, port: Port, spec: NetSpec) -> None:
        """A device is gone; so is what only it has used."""
        switch = port.switch
        assert switch is not None
        switch.detach(port)
        self._addresses = {address: other for address, other in self._addresses.items() if other is not port}
        called = uplink_of(port.name, spec)
        if called:
            uplink = self.uplinks[called]
            uplink.users -= 1
            if not uplink.users:
                assert uplink.port.switch is not None
                uplink.port.switch.detach(uplink.port)
                del self.uplinks[called]
        for name in [name for name, one in self.switches.items() if not one.ports]:
            del self.switches[name]

    def _switch(self, name: str) -> Switch:
        found = self.switches.get(name)
        if found is None:
            found = self.switches[name] = Switch(name, self._now)
            found.taps += self._taps
        return found

    # -- outside -----------------------------------------------------------------------------------------

    def receive(self, uplink: str, data: bytes) -> None:
        """A frame comes in. ConfigError: there is no such uplink."""
        found = self.uplinks.get(uplink)
        if found is None:
            raise ConfigError(f"There is no uplink {uplink!r}.")
        found.port.send(Frame(data))

    def watch(self, tap: Tap, name: str = "") -> None:
        """Show frames to `tap`: all, or those of a switch or a device of that name. ConfigError."""

        def seen(frame: Frame) -> None:
            if not self.silent:
                tap(frame)

        found = self.watched(name)
        if found is not None:
            found.taps.append(seen)
            return
        self._taps.append(seen)
        for switch in self.switches.values():
            switch.taps.append(seen)

    def watched(self, name: str) -> Switch | Port | None:
        """The switch or device of that name; None: without a name it is all. ConfigError: there is none."""
        if not name:
            return None
        ports = {port.name: port for switch in self.switches.values() for port in switch.ports}
        found = self.switches.get(name) or ports.get(name)
        if found is None:
            there = ", ".join([*self.switches, *(port for port in ports if port not in self.switches)])
            raise ConfigError(f"There is no switch and no device {name!r} to be captured; there are {there}.")
        return found

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Plain]:
        """What the switches have learned."""
        return {"switches": [[name, switch.state()] for name, switch in sorted(self.switches.items())]}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved; the devices are plugged in already. StateError."""
        listed = entries(dict(saved), "", {"switches": None})["switches"]
        found = typed(list[tuple[str, Said]], listed, "switches")
        if [name for name, _ in found] != sorted(self.switches):
            raise refusal("switches", "are not those that devices are plugged into")
        for name, one in found:
            restore(self.switches[name], one, f"switches.{name}")


def uplink_of(name: str, spec: NetSpec) -> str:
    """The uplink's name that a device wants; empty: none."""
    if spec.forwards is not None:
        return f"{name}:user"
    return "" if spec.socket is None else spec.socket.path
