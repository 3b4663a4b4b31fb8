# SPDX-License-Identifier: GPL-2.0-only
"""A snapshot: a machine's memory and state at one moment, in this process or in a file.

Taking one costs what was written since the last one: memory is shared with the machine that goes on. `notes`
is what whoever takes it wants to find again, plain data of his own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pyhv.abi.domid import DOMID_FIRST_RESERVED
from pyhv.abi.layout import u16
from pyhv.board import MAX_MEMORY_PAGES, frames_for
from pyhv.cpu.layers import Image
from pyhv.devices.toolstack import SinkFor
from pyhv.errors import ConfigError, SnapshotError, StateError
from pyhv.machine import Machine
from pyhv.snapshot import container
from pyhv.snapshot.pages import PageWriter, read_pages
from pyhv.snapshot.whole import put_back, rebuild, say
from pyhv.state import Plain, entries, items, typed
from pyhv.version import VERSION

_Frames = Annotated[int, range(frames_for(MAX_MEMORY_PAGES, DOMID_FIRST_RESERVED))]


@dataclass(frozen=True)
class Snapshot:
    """A moment of a machine. Nothing changes it; any number of machines can go on from it."""

    image: Image
    state: Plain
    notes: Plain
    about: dict[str, Any]
    """What a person wants to know of it: `pyhv inspect` shows that."""
    trusted: bool = False
    """It was taken in this process, and not read from a file that anybody may have made."""

    def __repr__(self) -> str:
        return f"<Snapshot at {self.about['time_ns'] / 1e9:.6f} s of {len(self.about['guests'])} guests>"

    @property
    def domids(self) -> list[int]:
        """Of the domains that were there. SnapshotError: the state is none."""
        with _told():
            domains = items(entries(self.state, "", None).get("domains"), "domains")
            return [typed(u16, entries(one, "domains").get("domid"), "domains.domid") for one in domains]

    def save(self, path: Path | str) -> None:
        """Write it to a file, which is replaced whole or stays what it was. SnapshotError."""
        head = {**self.about, "written": datetime.now(UTC).isoformat(timespec="seconds")}
        body = {"machine": self.state, "notes": self.notes}
        container.write(Path(path), head, body, PageWriter(self.image))

    def put_back(self, machine: Machine, sink_for: SinkFor) -> None:
        """Make `machine`, from which it was taken, what it was. SnapshotError."""
        with _told():
            put_back(machine, self.state, self.image, sink_for, trusted=self.trusted)

    def rebuild(self, sink_for: SinkFor, *, tuned: bool = True, measure: bool = False) -> Machine:
        """A machine of its own that goes on from here. SnapshotError."""
        with _told():
            return rebuild(
                self.state, self.image, sink_for, trusted=self.trusted, tuned=tuned, measure=measure
            )


@contextmanager
def _told() -> Iterator[None]:
    """What saved state cannot be is a SnapshotError to whoever wants to go on from it."""
    try:
        yield
    except StateError as error:
        raise SnapshotError(str(error)) from error
    except ConfigError as error:
        raise SnapshotError(f"speaks of a machine that cannot be: {error}") from error


def take(machine: Machine, notes: Plain = None) -> Snapshot:
    """The machine as it is now; it must not be running. SnapshotError."""
    said = say(machine)
    about = {
        "pyhv": VERSION,
        "time_ns": machine.now(),
        "frames": machine.ram.frames,
        "virtual_time": machine.config.virtual_time,
        "guests": [
            {
                "name": resident.domain.name,
                "domid": resident.domain.domid,
                "memory_pages": resident.domain.tot_pages,
                "vcpus": len(resident.domain.vcpus),
                "width": resident.domain.width,
                "stage": resident.domain.life.stage.value,
            }
            for resident in machine.residents
        ],
    }
    return Snapshot(machine.ram.freeze(), said, notes, about, trusted=True)


def load(path: Path | str) -> Snapshot:
    """A snapshot from a file. SnapshotError: it is none, or damaged, or of another pyhv."""
    content = container.read(Path(path))
    try:
        return understood(content)
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from error


def understood(content: container.Content) -> Snapshot:
    """The snapshot that a file's content stands for. SnapshotError, without naming a file."""
    with _told():
        body = entries(content.state, "", {"machine": None, "notes": None})
        frames = typed(_Frames, content.head.get("frames"), "frames")
        image = read_pages(frames, content.table, content.blocks)
    return Snapshot(image, body["machine"], body["notes"], content.head)
