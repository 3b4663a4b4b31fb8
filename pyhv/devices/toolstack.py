# SPDX-License-Identifier: GPL-2.0-only
"""Domain 0: the toolstack's event channels, the store, and the back ends of all guests by name.

It has no memory and no vCPU; what it may do that others may not is that its channels are privileged. When a
guest notifies a port of domain 0, that port names a device, which is looked up here and asked at once, inside
the guest's hypercall.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import ClassVar, Final

from pyhv.abi.layout import u16, u32
from pyhv.address import Mfn
from pyhv.clock import Clock
from pyhv.devices.backend import Backend, Link
from pyhv.devices.blkback import BlockBackend
from pyhv.devices.borrowing import Borrower
from pyhv.devices.console_backend import ConsoleBackend
from pyhv.devices.console_log import ConsoleLog, ConsoleSink
from pyhv.devices.drive import Drive
from pyhv.devices.netback import NetBackend
from pyhv.devices.networks import Networks
from pyhv.devices.store_backend import StoreBackend
from pyhv.devices.xenbus import XenbusBackend
from pyhv.errors import ConfigError
from pyhv.events.channels import DeviceName, EventChannels
from pyhv.events.delivery import Unshared
from pyhv.frozen import frozen
from pyhv.grants.table import GrantTable
from pyhv.mmu.physical import FramePage, PhysicalMemory
from pyhv.net import mac
from pyhv.net.spec import NetSpec
from pyhv.state import Plain, Said, entries, refusal, restore, state, typed
from pyhv.storage.disk import Disk
from pyhv.storage.open import open_disk
from pyhv.storage.spec import DiskSpec
from pyhv.xenstore.store import Store

STORE_PORT, CONSOLE_PORT = 1, 2
"""The ports that each guest finds offered to domain 0 when it starts."""
KINDS: Final[dict[str, type[Backend]]] = {
    one.kind: one for one in (ConsoleBackend, StoreBackend, BlockBackend, NetBackend)
}
"""All kinds of devices, by name."""

SinkFor = Callable[[int], ConsoleSink]


@frozen
class _Saved:
    """A device as plain data."""

    kind: str
    domid: u16
    handle: u32
    page: Mfn | None
    """The page that it has shared with the guest from the beginning."""
    port: u32
    state: Said


class ToolstackDomain:
    """Domain 0. `lookup` finds other domains' event channels by domid, `grants` their grant tables."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("store", "channels", "borrower", "networks", "_devices"), "said as its parts"),
        **dict.fromkeys(("open_disk", "at_hand"), "given"),
        "link": "what it has for its devices",
        "_deadlines": "asked of the devices",
        "_unfinished": "all are asked once",
        "_left_behind": "of no guest that is there",
    }

    def __init__(
        self,
        physical: PhysicalMemory,
        clock: Clock,
        lookup: Callable[[int], EventChannels | None],
        grants: Callable[[int], GrantTable | None],
        seed: int = 0,
    ) -> None:
        self.store = Store()
        self.networks = Networks(seed, clock.now)
        self.borrower = Borrower(physical, grants)
        self.open_disk: Callable[[DiskSpec], Disk] = open_disk
        """How disks are opened that a configuration names."""
        self.at_hand: dict[DeviceName, Drive] = {}
        """Drives of devices that are about to come back, which need not be opened."""
        self.channels = EventChannels(
            0, 1, lookup=lookup, pending=Unshared(), wake=lambda _vcpu: None,
            port_became_pending=lambda _port: None, privileged=True, max_port=4095, device_event=self.event,
        )  # fmt: skip
        self.link = Link(
            self.channels,
            physical.frames,
            self.store,
            clock,
            self.borrower,
            self.networks,
            self._drive,
            set(),
        )
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

    def _drive(self, name: DeviceName, spec: DiskSpec) -> Drive:
        """A device's drive: the one at hand, or a disk that is opened. DiskError, ConfigError."""
        found = self.at_hand.pop(name, None)
        return Drive(self.open_disk(spec)) if found is None else found

    def plug(self, device: XenbusBackend) -> None:
        """Show a device to a guest, whose driver may connect to it. ConfigError: it has one of that name."""
        name = device.name
        if name in self._devices.get(name.domid, {}):
            device.let_go()
            raise ConfigError(f"Domain {name.domid} has {name.kind} {name.handle} already.")
        self._devices.setdefault(name.domid, {})[name] = device
        try:
            device.plug()
        except BaseException:
            self._remove(device)
            raise

    def unplug(self, domid: int, kind: str, handle: int) -> None:
        """Ask a guest to let a device go, which it may do or not. ConfigError: it has none of that name."""
        device = self._devices.get(domid, {}).get(DeviceName(kind, domid, handle))
        if not isinstance(device, XenbusBackend):
            raise ConfigError(f"Domain {domid} has no {kind} {handle}.")
        device.unplug()

    def plug_net(self, domid: int, spec: NetSpec) -> NetBackend:
        """Plug a network device in, with the first number that is free. ConfigError: it cannot be."""
        taken = {one.name.handle for one in self.devices(domid) if isinstance(one, NetBackend)}
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        if number >= mac.DEVICES:
            raise ConfigError(f"A domain has at most {mac.DEVICES} network devices.")
        device = NetBackend(self.link, domid, number, spec)
        self.plug(device)
        return device

    def disks(self, domid: int) -> list[BlockBackend]:
        """A domain's disks, in the order in which they came."""
        return [device for device in self.devices(domid) if isinstance(device, BlockBackend)]

    def all_disks(self) -> list[BlockBackend]:
        """All domains' disks."""
        return [disk for domid in self._devices for disk in self.disks(domid)]

    def close(self) -> None:
        """The machine is no longer used: what is left is offered to consoles' sinks, and disks are closed."""
        self.go_on()
        for disk in self.all_disks():
            disk.close()
        self.put_aside()

    def put_aside(self) -> None:
        """No device that was to come back has wanted the drives that are still at hand."""
        for drive in self.at_hand.values():
            drive.let_go()
        self.at_hand.clear()

    def devices(self, domid: int) -> Iterator[Backend]:
        """A domain's devices, in the order in which they came."""
        return iter(tuple(self._devices.get(domid, {}).values()))

    def console(self, domid: int) -> ConsoleBackend:
        """A domain's console. KeyError."""
        found = self._devices[domid][DeviceName(ConsoleBackend.kind, domid, 0)]
        assert isinstance(found, ConsoleBackend)
        return found

    def stall_console(self, domid: int, until: int | None) -> None:
        """`ConsoleBackend.stall`. KeyError."""
        console = self.console(domid)
        console.stall(until)
        self._note_deadline(console)

    def resume_console(self, domid: int) -> None:
        """`ConsoleBackend.resume`. KeyError."""
        console = self.console(domid)
        console.resume()
        self._note_deadline(console)

    def frames(self, domid: int) -> list[Mfn]:
        """A domain's frames that its devices refer to, each as often as they do."""
        return [mfn for device in self.devices(domid) for mfn in device.frames()]

    def event(self, name: DeviceName) -> None:
        """A guest has notified a device's port."""
        device = self._devices[name.domid][name]
        device.event()
        due = self._note_deadline(device)
        if due is not None:
            self.link.clock.shorten(due)

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
        for name in sorted(self._unfinished, key=_in_order):
            if not self._devices[name.domid][name].go_on():
                self._unfinished.discard(name)
        if self.link.closed:
            self._remove_closed()
        for log in self._left_behind:
            log.drain()
        self._left_behind = [log for log in self._left_behind if log]
        return bool(self._unfinished or self._left_behind)

    def _remove_closed(self) -> None:
        """Of devices that have closed, those go that were unplugged."""
        for name in sorted(self.link.closed, key=_in_order):
            device = self._devices[name.domid][name]
            if isinstance(device, XenbusBackend) and device.gone:
                device.forget_nodes()
                self._remove(device)
        self.link.closed.clear()

    def detach(self, domid: int) -> None:
        """A domain is gone: so are its devices. What it printed last is still offered to its sink."""
        for device in reversed(list(self.devices(domid))):
            if isinstance(device, ConsoleBackend) and device.log:
                self._left_behind.append(device.log)
            self._remove(device)

    def state(self) -> dict[str, Plain]:
        """The store, the channels, what is borrowed, and all devices."""
        return {
            "store": self.store.state(),
            "channels": self.channels.state(),
            "borrower": self.borrower.state(),
            "networks": self.networks.state(),
            "devices": [
                state(
                    _Saved(
                        name.kind,
                        name.domid,
                        name.handle,
                        None if device.page is None else device.page.mfn,
                        device.port,
                        device.state(),
                    )
                )
                for devices in self._devices.values()
                for name, device in devices.items()
            ],
        }

    def put_back(
        self, saved: Plain, domids: AbstractSet[int], find_page: Callable[[Mfn], FramePage], sink_for: SinkFor
    ) -> None:
        """Be what was saved, with the devices of `domids`; that frames are referred to is memory's to say.

        A console that is not here prints to what `sink_for` gives for its domid, which is one of those.
        StateError.
        """
        found = entries(
            saved, "dom0", dict.fromkeys(("store", "channels", "borrower", "networks", "devices"))
        )
        records = typed(list[_Saved], found["devices"], "devices")
        wanted = {DeviceName(record.kind, record.domid, record.handle): record for record in records}
        if len(wanted) != len(records):
            raise refusal("devices", "has one twice")
        if {name.domid for name in wanted} != domids:
            raise refusal("dom0", "has devices of other domains than there are")
        for device in [device for domid in list(self._devices) for device in self.devices(domid)]:
            if device.name not in wanted:
                device.let_go()
                self._forget(device)
        devices = [self._device(name, sink_for, record.state) for name, record in wanted.items()]
        if [device.name for device in devices] != list(wanted):
            raise refusal("devices", "has a handle that its kind does not have")
        restore(self.store, found["store"], "store")
        restore(self.channels, found["channels"], "channels")
        restore(self.borrower, found["borrower"], "borrower")
        consoles = {name.domid for name in wanted if name == DeviceName(ConsoleBackend.kind, name.domid)}
        if consoles != {name.domid for name in wanted}:
            raise refusal("devices", "are of a domain without a console")
        self._devices, self._deadlines = {}, {}
        for device in devices:  # in the order in which they came
            self._devices.setdefault(device.name.domid, {})[device.name] = device
        for device, record in zip(devices, records, strict=True):
            self._attach_again(device, record, find_page)
            restore(device, record.state, f"devices.{record.kind}-{record.domid}")
            self._note_deadline(device)
        restore(self.networks, found["networks"], "networks")
        if self.channels.devices() != {
            port: device.name for device in devices for port in device.all_ports()
        }:
            raise refusal("devices", "are not those that domain 0's ports name")
        mapped = [handle for handle, _ in self.borrower.maptrack.all()]
        if sorted(handle for device in devices for handle in device.all_borrowed()) != mapped:
            raise refusal("devices", "have not what domain 0 has borrowed, each once")
        self.link.closed.update(wanted)
        self._unfinished = set(wanted)  # the next look tells which have something left

    def _attach_again(self, device: Backend, record: _Saved, find_page: Callable[[Mfn], FramePage]) -> None:
        if isinstance(device, XenbusBackend):
            return
        if record.page is None or not 0 < record.page < self.link.frames.count:
            raise refusal("devices", f"has one with page {record.page}, which does not exist")
        device.attach_again(find_page(record.page), record.port)

    def _device(self, name: DeviceName, sink_for: SinkFor, saved: Plain) -> Backend:
        """A device that is here, or a new one. StateError: there is no such kind."""
        found = self._devices.get(name.domid, {}).get(name)
        if found is not None:
            return found
        if name.kind not in KINDS:
            raise refusal("devices", f"has one of the kind {name.kind!r}, which is none")
        made = KINDS[name.kind].made_again(self.link, name, sink_for, saved)
        self._devices.setdefault(name.domid, {})[made.name] = made  # so that `close` finds it in any case
        if isinstance(made, XenbusBackend):
            made.listen_again()
        return made

    def _remove(self, device: Backend) -> None:
        device.detach()
        self._forget(device)

    def _forget(self, device: Backend) -> None:
        self._deadlines.pop(device.name, None)
        self._unfinished.discard(device.name)
        self.link.closed.discard(device.name)
        devices = self._devices[device.name.domid]
        del devices[device.name]
        if not devices:
            del self._devices[device.name.domid]

    def _note_deadline(self, device: Backend) -> int | None:
        due = device.next_deadline()
        if due is not None:
            self._deadlines[device.name] = due
        elif self._deadlines:
            self._deadlines.pop(device.name, None)
        return due


def _in_order(name: DeviceName) -> tuple[int, str, int]:
    return name.domid, name.kind, name.handle
