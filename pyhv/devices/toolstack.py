# SPDX-License-Identifier: GPL-2.0-only
"""Domain 0: the toolstack's event channels, the store, and the back ends of all guests by name.

It has no memory and no vCPU; what it may do that others may not is that its channels are privileged. When a
guest notifies a port of domain 0, that port names a device, which is looked up here and asked at once, inside
the guest's hypercall.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Final

from pyhv.address import Mfn
from pyhv.clock import Clock
from pyhv.devices.backend import Backend, Link
from pyhv.devices.console_backend import ConsoleBackend
from pyhv.devices.console_log import ConsoleLog
from pyhv.devices.store_backend import StoreBackend
from pyhv.events.channels import DeviceName, EventChannels
from pyhv.events.delivery import Unshared
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.physical import FramePage
from pyhv.xenstore.store import Store

STORE_PORT, CONSOLE_PORT = 1, 2
"""The ports that each guest finds offered to domain 0 when it starts."""
KINDS: Final[dict[str, type[Backend]]] = {one.kind: one for one in (ConsoleBackend, StoreBackend)}
"""All kinds of devices, by name."""


class ToolstackDomain:
    """Domain 0. `lookup` finds other domains' event channels by domid."""

    def __init__(
        self, frames: FrameTable, clock: Clock, lookup: Callable[[int], EventChannels | None]
    ) -> None:
        self.store = Store()
        self.channels = EventChannels(
            0, 1, lookup=lookup, pending=Unshared(), wake=lambda _vcpu: None,
            port_became_pending=lambda _port: None, privileged=True, max_port=4095, device_event=self.event,
        )  # fmt: skip
        self.link = Link(self.channels, frames, self.store, clock)
        self._devices: dict[int, dict[DeviceName, Backend]] = {}
        """By domid."""
        self._deadlines: dict[DeviceName, int] = {}
        self._unfinished: set[DeviceName] = set()
        self._left_behind: list[ConsoleLog] = []
        """What domains that are gone have printed and nobody has taken yet."""

    def attach(self, device: Backend, page: FramePage, remote_port: int) -> None:
        """Connect a device to its guest. ConfigError, XenError as `Backend.attach`; then it is not there."""
        name = device.name
        if name.kind not in KINDS or name in self._devices.get(name.domid, {}):
            raise ValueError(f"{name} is there already, or of no known kind")
        self._devices.setdefault(name.domid, {})[name] = device
        try:
            device.attach(page, remote_port)
        except BaseException:
            self._remove(device)
            raise
        self._note_deadline(device)

    def devices(self, domid: int) -> Iterator[Backend]:
        """A domain's devices, in the order in which they came."""
        return iter(tuple(self._devices.get(domid, {}).values()))

    def console(self, domid: int) -> ConsoleBackend:
        """A domain's console. KeyError."""
        found = self._devices[domid][DeviceName(ConsoleBackend.kind, domid, 0)]
        assert isinstance(found, ConsoleBackend)
        return found

    def frames(self, domid: int) -> list[Mfn]:
        """A domain's frames that its devices refer to, each as often as they do."""
        return [mfn for device in self.devices(domid) for mfn in device.frames()]

    def event(self, name: DeviceName) -> None:
        """A guest has notified a device's port."""
        device = self._devices[name.domid][name]
        device.event()
        self._note_deadline(device)

    def turn_ended(self, domid: int, polled: Collection[int] | None) -> None:
        """A vCPU of a domain has left the processor."""
        for device in self._devices[domid].values():
            device.turn_ended(polled)
            if device.go_on():
                self._unfinished.add(device.name)

    def turn_paused(self, domid: int) -> None:
        """A turn of a domain is paused: what it has printed goes on, and it notices nothing."""
        self.console(domid).log.drain()

    def last_words(self, domid: int) -> None:
        """A domain stops running, for now or for ever: what it has put into its rings is taken."""
        for device in self.devices(domid):
            device.last_words()

    def next_deadline(self) -> int | None:
        """When the first device is due (ns); None: none is."""
        return min(self._deadlines.values(), default=None)

    def expire(self, now: int) -> None:
        """Let devices act that are due."""
        for name in [name for name, due in self._deadlines.items() if due <= now]:
            device = self._devices[name.domid][name]
            device.expire(now)
            self._note_deadline(device)

    def go_on(self) -> bool:
        """Between two turns: devices do what they could not do at once. True: something of it is left."""
        for name in sorted(self._unfinished, key=lambda name: (name.domid, name.kind, name.handle)):
            if not self._devices[name.domid][name].go_on():
                self._unfinished.discard(name)
        for log in self._left_behind:
            log.drain()
        self._left_behind = [log for log in self._left_behind if log]
        return bool(self._unfinished or self._left_behind)

    def detach(self, domid: int) -> None:
        """A domain is gone: so are its devices. What it printed last is still offered to its sink."""
        for device in reversed(list(self.devices(domid))):
            if isinstance(device, ConsoleBackend) and device.log:
                self._left_behind.append(device.log)
            self._remove(device)

    def _remove(self, device: Backend) -> None:
        device.detach()
        self._deadlines.pop(device.name, None)
        self._unfinished.discard(device.name)
        devices = self._devices[device.name.domid]
        del devices[device.name]
        if not devices:
            del self._devices[device.name.domid]

    def _note_deadline(self, device: Backend) -> None:
        due = device.next_deadline()
        if due is not None:
            self._deadlines[device.name] = due
        elif self._deadlines:
            self._deadlines.pop(device.name, None)
