# SPDX-License-Identifier: GPL-2.0-only
"""What is plugged into domains while they live, and what comes in by it: a machine's commands that are about
disks and networks. All of it comes in at the machine's door (`outside.py`).
"""

from abc import ABC, abstractmethod

from pyhv.devices.blkback import BlockBackend
from pyhv.devices.netback import NetBackend
from pyhv.devices.toolstack import ToolstackDomain
from pyhv.domain.domain import Domain
from pyhv.domain.lifecycle import Lifecycle
from pyhv.errors import ConfigError
from pyhv.net.spec import NetSpec
from pyhv.outside import Door, from_outside
from pyhv.storage.spec import DiskSpec
from pyhv.storage.vdev import vdev_number


def check_stage(domain: Domain, verb: str, *stages: Lifecycle) -> None:
    """ConfigError: a domain is in none of these stages, so that it cannot be `verb`."""
    if domain.life.stage not in stages:
        raise ConfigError(f"{domain.name} is {domain.life.stage.value}, so it cannot be {verb}.")


class Plugging(ABC):
    """A machine that has domains with devices."""

    dom0: ToolstackDomain
    door: Door

    @abstractmethod
    def came_in(self) -> None:
        """A command has taken effect."""

    @from_outside
    def attach_disk(self, domain: Domain, spec: DiskSpec) -> None:
        """Plug a disk, which has a name, into a living domain. ConfigError, DiskError: it cannot be."""
        check_stage(domain, "given a disk", Lifecycle.RUNNING, Lifecycle.PAUSED)
        self.dom0.plug(BlockBackend(self.dom0.link, domain.domid, spec))

    @from_outside
    def detach_disk(self, domain: Domain, vdev: str) -> None:
        """Ask a domain to let a disk go; it is gone when its driver has. ConfigError: it has no such disk."""
        self.dom0.unplug(domain.domid, BlockBackend.kind, vdev_number(vdev))

    @from_outside
    def attach_net(self, domain: Domain, spec: NetSpec) -> int:
        """Plug a network device into a living domain; returns its number. ConfigError: it cannot be."""
        check_stage(domain, "given a network device", Lifecycle.RUNNING, Lifecycle.PAUSED)
        return self.dom0.plug_net(domain.domid, spec).name.handle

    @from_outside
    def detach_net(self, domain: Domain, number: int) -> None:
        """Ask a domain to let a network device go; it is gone when its driver has. ConfigError."""
        self.dom0.unplug(domain.domid, NetBackend.kind, number)

    @from_outside
    def receive_frame(self, uplink: str, data: bytes) -> None:
        """A frame comes in from outside. ConfigError: there is no such uplink."""
        self.dom0.networks.receive(uplink, data)
