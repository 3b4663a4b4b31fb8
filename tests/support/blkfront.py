# SPDX-License-Identifier: GPL-2.0-only
"""A front end in Python: a paused guest whose driver is the test. It lays out its ring as a guest would."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyhv.abi.blkif import (
    BlkifDiscard,
    BlkifIndirect,
    BlkifRequest,
    BlkifResponse,
    Operation,
)
from pyhv.abi.xenbus import XenbusState
from pyhv.address import MASK32
from pyhv.devices.blkback import BlockBackend
from pyhv.devices.sharedring import entries_in
from pyhv.machine import Machine
from pyhv.storage.spec import DiskSpec, parse, with_vdevs
from pyhv.testing.granting import PERMIT, entry
from pyhv.testing.guest_machine import Paused

RING_REF, DATA_REF = 8, 32
RING_PAGE, DATA_PAGE = 0, 2


class BlkFront:
    """One disk's driver. Page 0 is the ring, pages 2 to 5 have data; grants 8 and 32.. lend them."""

    def __init__(self, machine: Machine, disk: str, *, width: int = 64, pages: int = 1) -> None:
        self.machine = machine
        self.guest = Paused(machine)
        self.width = width
        self.spec = with_vdevs([parse(disk)])[0]
        machine.attach_disk(self.guest.domain, self.spec)
        self.device = next(
            one for one in machine.dom0.devices(self.guest.domain.domid) if isinstance(one, BlockBackend)
        )
        self.pages = pages
        self.prod = self.seen = 0
        self.size = entries_in(pages * 4096, BlkifRequest.size(width))
        for number in range(pages):
            self.lend(RING_REF + number, RING_PAGE + number)
        for number in range(4):
            self.lend(DATA_REF + number, DATA_PAGE + number)

    @property
    def domid(self) -> int:
        return self.guest.domain.domid

    def lend(self, ref: int, page: int, *, domid: int = 0, flags: int = PERMIT) -> None:
        """Grant a scratch page to domain 0."""
        entry(self.guest, ref, flags, domid, self.guest.mfn(self.guest.page(page)))

    # -- the store ---------------------------------------------------------------------------------------

    def write(self, key: str, value: str | int) -> None:
        """As the guest writes a node of its own."""
        self.machine.store.write(f"{self.device.front}/{key}", value)

    def read(self, key: str) -> str:
        """A node of the back end's."""
        return self.machine.store.read_text(f"{self.device.back}/{key}")

    @property
    def theirs(self) -> XenbusState:
        """The back end's state."""
        return XenbusState(int(self.read("state")))

    def state(self) -> str:
        """Its name."""
        return self.theirs.name

    def say(self, state: XenbusState) -> None:
        """Be in a state."""
        self.write("state", int(state))

    def offer(self, **nodes: str | int) -> None:
        """Write what it takes to connect, or something else in its place."""
        self.port = self.guest.domain.events.alloc_unbound(0x7FF0, 0)
        self.guest.put(struct.pack("<4I", 0, 1, 0, 1).ljust(64, b"\0"), RING_PAGE * 4096)
        self.prod = self.seen = 0
        refs: dict[str, str | int] = {"ring-ref": RING_REF}
        if self.pages > 1:
            order = self.pages.bit_length() - 1
            refs = {"ring-page-order": order}
            refs |= {f"ring-ref{number}": RING_REF + number for number in range(self.pages)}
        protocol = "x86_64-abi" if self.width == 64 else "x86_32-abi"
        offered = {**refs, "event-channel": self.port, "protocol": protocol}
        for key, value in (offered | {key.replace("_", "-"): value for key, value in nodes.items()}).items():
            self.write(key, value)

    def connect(self, **nodes: str | int) -> XenbusState:
        """The whole handshake; the back end's state after it."""
        self.offer(**nodes)
        self.say(XenbusState.INITIALISED)
        return self.theirs

    # -- the ring ----------------------------------------------------------------------------------------

    def _at(self, index: int) -> int:
        return RING_PAGE * 4096 + 64 + index % self.size * BlkifRequest.size(self.width)

    def put(self, raw: bytes) -> None:
        """A request into the ring, not yet told."""
        self.guest.put(raw, self._at(self.prod))
        self.prod = (self.prod + 1) & MASK32
        self.guest.put(struct.pack("<I", self.prod), RING_PAGE * 4096)

    def ring(self) -> None:
        """Notify the back end, as the guest does."""
        self.guest.domain.events.send(self.port)

    def request(
        self,
        operation: int,
        sector: int = 0,
        segments: list[tuple[int, int, int]] | None = None,
        *,
        identity: int = 7,
        count: int | None = None,
    ) -> bytes:
        """The bytes of a request."""
        parts = [(DATA_REF, 0, 7)] if segments is None else segments
        packed = b"".join(struct.pack("<IBBxx", *part) for part in parts)
        number = len(parts) if count is None else count
        return BlkifRequest(
            operation=operation, nr_segments=number, id=identity, sector_number=sector,
            segments=packed[:88].ljust(88, b"\0"),
        ).pack(self.width)  # fmt: skip

    def discard(self, sector: int, count: int, identity: int = 7) -> bytes:
        """The bytes of a DISCARD."""
        return self._padded(
            BlkifDiscard(operation=Operation.DISCARD, id=identity, sector_number=sector, nr_sectors=count)
        )

    def indirect(self, operation: int, sector: int, count: int, refs: list[int], identity: int = 7) -> bytes:
        """The bytes of an INDIRECT request whose segments are in the pages that `refs` lend."""
        packed = b"".join(ref.to_bytes(4, "little") for ref in refs).ljust(32, b"\0")
        return self._padded(
            BlkifIndirect(
                operation=Operation.INDIRECT, indirect_op=operation, nr_segments=count, id=identity,
                sector_number=sector, references=packed,
            )
        )  # fmt: skip

    def _padded(self, request: Any) -> bytes:
        return bytes(request.pack(self.width)).ljust(BlkifRequest.size(self.width), b"\0")

    def responses(self) -> list[tuple[int, int, int]]:
        """(id, operation, status) of what has come since."""
        produced = int.from_bytes(self.guest.get(4, RING_PAGE * 4096 + 8), "little")
        found = []
        while self.seen != produced:
            raw = self.guest.get(BlkifResponse.size(self.width), self._at(self.seen))
            response = BlkifResponse.unpack(raw, self.width)
            found.append((response.id, response.operation, response.status))
            self.seen = (self.seen + 1) & MASK32
        return found

    def settle(self) -> list[tuple[int, int, int]]:
        """Let time pass until all is answered; the responses."""
        for _ in range(64):
            self.machine.settle()
            due = self.machine.dom0.next_deadline()
            if due is None:
                break
            self.machine.clock.advance_to(due)
        return self.responses()

    def do(self, *requests: bytes) -> list[int]:
        """Put requests, notify, and wait; the statuses in the order of the responses."""
        for raw in requests:
            self.put(raw)
        self.ring()
        return [status for _, _, status in self.settle()]

    def data(self, page: int = 0) -> bytes:
        """A page of data."""
        return self.guest.get(4096, (DATA_PAGE + page) * 4096)

    def fill(self, data: bytes, page: int = 0) -> None:
        """Fill a page of data."""
        self.guest.put(data, (DATA_PAGE + page) * 4096)


def raw_disk(path: Path, sectors: int = 64) -> Path:
    """A raw image in which each sector says its number."""
    path.write_bytes(b"".join(struct.pack("<I", number) * 128 for number in range(sectors)))
    return path


def other_spec(front: BlkFront, target: str) -> DiskSpec:
    """Another disk, as xvdb."""
    return replace(front.spec, vdev="xvdb", target=target)
