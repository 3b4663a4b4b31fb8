# SPDX-License-Identifier: GPL-2.0-only
"""What a back end is: a device's end that lives in the hypervisor, behind a ring and a port of its guest.

A device is one module with a subclass of `Backend`, and one line in `pyhv.devices.toolstack.KINDS`. The
machine asks all devices the same: an event has come, a deadline is due, the guest has left the processor, it
is gone. Nobody holds a device's methods: domain 0's ports say the device's name (`DeviceName`), and who
wants the device looks it up.

A back end does not run its guest and does not wait. What it writes it writes through its `Link`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, Self

from pyhv.abi.domid import DOMID_SELF
from pyhv.address import Mfn
from pyhv.clock import Clock
from pyhv.devices.borrowing import Borrower
from pyhv.devices.console_log import ConsoleSink
from pyhv.devices.drive import Drive
from pyhv.devices.networks import Networks
from pyhv.errors import ConfigError
from pyhv.events.channels import DeviceName, EventChannels
from pyhv.frozen import frozen
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.physical import FramePage
from pyhv.state import Plain
from pyhv.storage.spec import DiskSpec
from pyhv.xenstore.store import Store


@frozen
class Link:
    """What domain 0 has for its back ends."""

    channels: EventChannels
    """Domain 0's."""
    frames: FrameTable
    store: Store
    clock: Clock
    borrower: Borrower
    """Through which pages of guests are reached that they lend."""
    networks: Networks
    """What network devices are plugged into."""
    drive: Callable[[DeviceName, DiskSpec], Drive]
    """The disk that a device is to have. DiskError, ConfigError."""
    closed: set[DeviceName]
    """Devices that have closed since domain 0 has last looked whether one of them is to go."""


class Backend(ABC):
    """One device of one guest. `attach` connects it, `detach` ends it; the rest is in between."""

    kind: ClassVar[str]
    """The device's kind, as in the store's paths."""
    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("name", "link", "page", "port"), "made by `attach`"
    )

    def __init__(self, link: Link, domid: int, handle: int = 0) -> None:
        self.name = DeviceName(self.kind, domid, handle)
        self.link = link
        self.page: FramePage | None = None
        """The page that it shares with the guest, with a writable reference as a mapping would hold it."""
        self.port = 0
        """Domain 0's port; 0 before it is attached."""

    def attach(self, page: FramePage, remote_port: int) -> None:
        """Share a page of the guest, and connect to the port that it offers to domain 0.

        ConfigError: the guest uses the page for something that nobody else may write. XenError: no such port.
        """
        if not self.link.frames.take_writable(page.mfn):
            raise ConfigError(f"The image wants the page of its {self.kind}'s ring for something else.")
        self.page = page
        self.use(page)
        self.port = self.link.channels.bind_device(self.name, remote_port)

    def attach_again(self, page: FramePage, port: int) -> None:
        """Be attached as it was when it was saved: reference and port are restored by their owners."""
        self.page, self.port = page, port
        self.use(page)

    def use(self, _page: FramePage) -> None:
        """Begin to use the page that it shares with the guest."""
        return

    @classmethod
    def made_again(
        cls, link: Link, name: DeviceName, _sink_for: Callable[[int], ConsoleSink], _saved: Plain
    ) -> Self:
        """A device for what was saved of one of this kind. StateError, DiskError."""
        return cls(link, name.domid, name.handle)

    def detach(self) -> None:
        """The guest is gone, or does without: give up port and page. Also of one that is half attached."""
        if self.port:
            self.link.channels.close(self.port)
        if self.page is not None:
            self.link.frames.drop_writable(self.page.mfn)
        self.port, self.page = 0, None

    def let_go(self) -> None:
        """The machine is put back to when it was not there: frames and ports are no longer its affair."""
        self.port, self.page = 0, None

    def notify(self) -> None:
        """Ring the guest's port."""
        self.link.channels.send(self.port)

    def is_polled(self, polled: Collection[int] | None) -> bool:
        """Whether a guest that polls `polled` would hear of `notify`; None: it does not poll."""
        if polled is None:
            return True
        return self.link.channels.status(DOMID_SELF, self.port).remote_port in polled

    def frames(self) -> list[Mfn]:
        """The guest's frames that it refers to by itself, each as often as it does."""
        return [] if self.page is None else [self.page.mfn]

    def all_ports(self) -> list[int]:
        """Domain 0's ports that lead to it."""
        return [self.port] if self.port else []

    def all_borrowed(self) -> list[int]:
        """Domain 0's handles of what it has mapped of the guest's."""
        return []

    @abstractmethod
    def event(self) -> None:
        """The guest has rung, and is in its hypercall: take what there is."""

    def turn_ended(self, _polled: Collection[int] | None) -> None:
        """A vCPU of the guest has left the processor; it polls these ports, or (None) does not poll."""
        return

    def go_on(self) -> bool:
        """Between two turns: do what could not be done at once. True: something of it is left."""
        return False

    def last_words(self) -> None:
        """The guest stops running, for now or for ever: take what it has put into its rings."""
        return

    def next_deadline(self) -> int | None:
        """Machine time (ns) at which `expire` is wanted, or None. Asked after each event and expiry."""
        return None

    def expire(self, _now: int) -> None:
        """The deadline has come."""
        return

    @abstractmethod
    def state(self) -> dict[str, Plain]:
        """What it is but for page and port, as plain data."""

    @abstractmethod
    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
