# SPDX-License-Identifier: GPL-2.0-only
"""What a machine's user knows of it, as plain data: the notes of a snapshot."""

from typing import TYPE_CHECKING

from pyhv.abi.layout import u16, u64
from pyhv.api.console import ConsoleNotes
from pyhv.errors import SnapshotError
from pyhv.frozen import frozen
from pyhv.state import Tally, construct

if TYPE_CHECKING:
    from pyhv.snapshot.snapshot import Snapshot


@frozen
class GuestNotes:
    """A guest as plain data, but for its domain."""

    domid: u16
    name: str
    uuid: str
    console: ConsoleNotes
    runs: Tally
    """Commands that were run in its shell."""
    symbols: list[tuple[str, u64]]


@frozen
class MachineNotes:
    """What a machine's user knows of it, for a snapshot."""

    guests: list[GuestNotes]
    typed: dict[u16, bytes]
    """What was typed on consoles that had no room for it yet, by domid."""


def read_notes(snapshot: "Snapshot") -> MachineNotes:
    """What a snapshot's user has noted. SnapshotError: that does not belong to its domains, or is none."""
    from uuid import UUID

    with snapshot.reading():
        notes = construct(MachineNotes, snapshot.notes, "notes")
        if sorted(guest.domid for guest in notes.guests) != sorted(snapshot.domids()):
            raise SnapshotError("has notes on guests that are not there")
        for guest in notes.guests:
            try:
                UUID(guest.uuid)
            except ValueError:
                raise SnapshotError(f"has a guest with the UUID {guest.uuid!r}, which is none") from None
        return notes
