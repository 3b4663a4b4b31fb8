# SPDX-License-Identifier: GPL-2.0-only
"""A snapshot: a machine's memory and state at one moment, in this process or in a file.

Taking one costs what was written since the last one: memory is shared with the machine that goes on. `notes`
is what whoever takes it wants to find again, plain data of his own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pyhv.abi.domid import DOMID_FIRST_RESERVED
from pyhv.abi.layout import u8, u16, u32, u64
from pyhv.board import MAX_MEMORY_PAGES, frames_for
from pyhv.cpu.layers import Image
from pyhv.devices.blkback import BlockBackend
from pyhv.devices.drive import Drive, DriveMoment
from pyhv.devices.toolstack import SinkFor
from pyhv.domain.domain import Domain
from pyhv.errors import ConfigError, SnapshotError, StateError
from pyhv.events.channels import DeviceName
from pyhv.frozen import frozen
from pyhv.machine import Machine
from pyhv.snapshot import container
from pyhv.snapshot.pages import PageWriter, read_pages
from pyhv.snapshot.whole import put_back, rebuild, say
from pyhv.state import Nanoseconds, Plain, construct, entries, given, items, state, typed
from pyhv.storage.disk import DiskError, Identity
from pyhv.version import VERSION

_Frames = Annotated[int, range(frames_for(MAX_MEMORY_PAGES, DOMID_FIRST_RESERVED))]


@frozen
class GuestAbout:
    """What a person wants to know of a guest; `verdict` is how the command line judges its output."""

    domid: u16
    name: str
    stage: str
    width: u8
    vcpus: u8
    memory_pages: u64
    verdict: str
    """Empty: none was named."""


@frozen
class About:
    """What a person wants to know of a snapshot: its file's head. Only memory's size is rebuilt from it."""

    pyhv: str
    time_ns: Nanoseconds
    virtual_time: bool
    frames: _Frames
    guests: list[GuestAbout]
    written: str = ""
    """When its file was, in UTC; empty: there is none."""


@frozen
class SavedDisk:
    """A guest's disk at a moment."""

    domid: u16
    handle: u32
    files: list[Identity]
    """What it consisted of."""
    moment: DriveMoment | None = given("of this process")


@frozen
class Snapshot:
    """A moment of a machine. Nothing changes it; any number of machines can go on from it."""

    image: Image
    state: Plain
    notes: Plain
    about: About
    trusted: bool = False
    """It was taken in this process, and not read from a file that anybody may have made."""
    origin: str = ""
    """The file that it was read from: what is said against it names that."""
    disks: tuple[SavedDisk, ...] = ()
    """What the guests' disks were."""

    def __repr__(self) -> str:
        return f"<Snapshot at {self.about.time_ns / 1e9:.6f} s of {len(self.about.guests)} guests>"

    def domids(self) -> list[int]:
        """Of the domains that were there. SnapshotError: the state is none."""
        with self.reading():
            domains = items(entries(self.state, "", None).get("domains"), "domains")
            return [typed(u16, entries(one, "domains").get("domid"), "domains.domid") for one in domains]

    def save(self, path: Path | str) -> None:
        """Write it to a file, which is replaced whole or stays what it was. SnapshotError."""
        about = replace(self.about, written=datetime.now(UTC).isoformat(timespec="seconds"))
        disks = [state(one) for one in self.disks]
        body = {"machine": self.state, "notes": self.notes, "disks": disks}
        container.write(Path(path), state(about), body, PageWriter(self.image))

    @classmethod
    def load(cls, path: Path | str) -> "Snapshot":
        """One that was saved to a file. SnapshotError: it is none, or damaged, or of another pyhv."""
        content = container.read(Path(path))
        with _told(str(path)):
            return replace(understood(content), origin=str(path))

    def put_back(self, machine: Machine, sink_for: SinkFor) -> None:
        """Make `machine`, from which it was taken, what it was. SnapshotError."""
        with self.reading():
            machine.dom0.at_hand.update(self._drives(DriveMoment.put_back))
            try:
                put_back(machine, self.state, self.image, sink_for, trusted=self.trusted)
            finally:
                machine.dom0.put_aside()

    def rebuild(self, sink_for: SinkFor, *, tuned: bool = True, measure: bool = False) -> Machine:
        """A machine of its own that goes on from here. SnapshotError."""
        with self.reading():
            made = rebuild(
                self.state, self.image, sink_for, trusted=self.trusted, drives=self._drives(DriveMoment.view),
                tuned=tuned, measure=measure,
            )  # fmt: skip
            try:
                self._check_disks(made)
            except SnapshotError:
                made.close()
                raise
            return made

    def _drives(self, drive: Callable[[DriveMoment], Drive]) -> dict[DeviceName, Drive]:
        """The disks as they were. DiskError: that is not remembered any more."""
        found: dict[DeviceName, Drive] = {}
        try:
            for one in self.disks:
                if one.moment is not None:
                    found[DeviceName(BlockBackend.kind, one.domid, one.handle)] = drive(one.moment)
        except DiskError as error:
            for taken in found.values():
                taken.let_go()
            raise SnapshotError(f"needs what a disk has held, but {error}") from error
        return found

    def _check_disks(self, machine: Machine) -> None:
        """The disks of a machine that comes from a file are as they were. SnapshotError."""
        saved = {(one.domid, one.handle): one for one in self.disks}
        for device in machine.dom0.all_disks():
            known = saved.get((device.name.domid, device.name.handle))
            if known is None:
                raise SnapshotError(f"does not say what was on {device.spec.vdev}")
            if known.moment is None and known.files != device.disk.identity():
                raise SnapshotError(f"was taken when {device.disk.name} held something else")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Whatever is found to be wrong with it is a SnapshotError that names its file."""
        with _told(self.origin):
            yield


@contextmanager
def _told(origin: str) -> Iterator[None]:
    """What saved state cannot be is a SnapshotError to whoever wants to go on from it."""
    place = f"{origin}: " if origin else ""
    try:
        yield
    except (StateError, SnapshotError) as error:
        raise SnapshotError(f"{place}{error}") from error
    except DiskError as error:
        raise SnapshotError(f"{place}needs a disk that cannot be had: {error}") from error
    except ConfigError as error:
        raise SnapshotError(f"{place}speaks of a machine that cannot be: {error}") from error


def take(
    machine: Machine, notes: Plain = None, verdicts: Mapping[int, str] = MappingProxyType({})
) -> Snapshot:
    """The machine as it is now; it must not be running. SnapshotError. `verdicts` are by domid."""
    said = say(machine)
    guests = [
        _about(resident.domain, verdicts.get(resident.domain.domid, "")) for resident in machine.residents
    ]
    about = About(VERSION, machine.now(), machine.clock.counted, machine.ram.frames, guests)
    with _told(""):
        disks = tuple(_saved(device) for device in machine.dom0.all_disks())
    return Snapshot(machine.ram.freeze(), said, notes, about, trusted=True, disks=disks)


def _saved(device: BlockBackend) -> SavedDisk:
    moment = device.moment()
    return SavedDisk(device.name.domid, device.name.handle, moment.identity, moment)


def _about(domain: Domain, verdict: str) -> GuestAbout:
    return GuestAbout(
        domid=domain.domid,
        name=domain.name,
        stage=domain.life.stage.value,
        width=domain.width,
        vcpus=len(domain.vcpus),
        memory_pages=domain.tot_pages,
        verdict=verdict,
    )


def understood(content: container.Content) -> Snapshot:
    """The snapshot that a file's content stands for. SnapshotError, without naming a file."""
    with _told(""):
        about = construct(About, content.head, "head")
        body = entries(content.state, "", {"machine": None, "notes": None, "disks": None})
        listed = items(body["disks"], "disks")
        disks = tuple(construct(SavedDisk, one, "disks", moment=None) for one in listed)
        image = read_pages(about.frames, content.table, content.blocks)
    return Snapshot(image, body["machine"], body["notes"], about, disks=disks)
