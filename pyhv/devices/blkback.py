# SPDX-License-Identifier: GPL-2.0-only
"""The block back end: a guest's disk (public header `io/blkif.h`).

    request ─► taken from the ring, copied, checked (`blkrequest.py`)
               what it writes is copied out of the guest's pages
            ─► done by the host (`diskwork.py`)
    answer  ◄─ what it read is copied into the guest's pages, and the response goes into the ring

A request that lies - sectors past the end, a grant that is none, an operation that there is not - ends in its
own error. A ring whose indices cannot be disconnects the device (`xenbus.py`), and the guest lives on.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final, NamedTuple, Self

from pyhv.abi.blkif import (
    MAX_RING_ORDER,
    SECTOR_SIZE,
    SECTORS_PER_PAGE,
    BlkifRequest,
    BlkifResponse,
    BlkifStatus,
    DiskFlag,
    Operation,
)
from pyhv.abi.layout import u8, u32, u64
from pyhv.devices.backend import Link
from pyhv.devices.blkrequest import (
    MAX_INDIRECT_SEGMENTS,
    BadRequest,
    DiskRequest,
    DiskSegment,
    Unsupported,
    header,
    parse,
)
from pyhv.devices.borrowing import Borrowed
from pyhv.devices.console_log import ConsoleSink
from pyhv.devices.diskwork import LOOK_NS, DiskWork, Done, Job
from pyhv.devices.drive import DriveMoment
from pyhv.devices.sharedring import BackRing
from pyhv.devices.xenbus import MOST_QUEUES, DeviceRefused, XenbusBackend
from pyhv.events.channels import DeviceName
from pyhv.grants.status import GrantError
from pyhv.state import Nanoseconds, Plain, Said, construct, entries, refusal, restore, state
from pyhv.storage.disk import Disk
from pyhv.storage.spec import DiskSpec
from pyhv.storage.vdev import looks_like_vdev, vdev_number
from pyhv.xenstore.store import Value

_PROTOCOLS: Final = {"x86_64-abi": 64, "x86_32-abi": 32}
_PAGES: Final = frozenset(1 << order for order in range(MAX_RING_ORDER + 1))
"""How many a ring may have."""
_REQUEST_NS: Final = 2_000
_SEGMENT_NS: Final = 200
"""What a request, and each of its segments, costs the guest in counted time, in its hypercall."""


@dataclass(slots=True)
class _Waiting:
    """A request that has no answer yet."""

    queue: u8
    id: u64
    operation: u8
    segments: list[DiskSegment]
    """Where what is read goes; empty for what reads nothing."""
    due: Nanoseconds
    """Counted time: when the guest hears of it."""
    data: bytes
    error: str
    """Counted time: what became of it."""


@dataclass(slots=True)
class _SavedQueue:
    handles: list[u32]
    port: u32
    ring: Said


@dataclass(slots=True)
class _Saved:
    spec: DiskSpec
    xenbus: Said
    width: u8
    queues: list[_SavedQueue]
    pending: list[_Waiting]
    busy_until: Nanoseconds


class _Queue(NamedTuple):
    ring: BackRing
    handles: list[int]
    """Of its pages."""
    port: int


class BlockBackend(XenbusBackend):
    """One disk of one guest, which `spec` speaks of; the device owns it, and closes it."""

    kind: ClassVar[str] = "vbd"
    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **XenbusBackend.NOT_STATE,
        **dict.fromkeys(("drive", "disk", "_work", "_size"), "opened as `spec` says"),
        "_under_way": "waited for, and said as what is pending",
        "_numbers": "tells apart what is due at one time",
        **dict.fromkeys(("read_bytes", "written_bytes"), "statistics"),
    }

    def __init__(self, link: Link, domid: int, spec: DiskSpec) -> None:
        """ConfigError, DiskError: the disk cannot be opened."""
        assert spec.vdev is not None
        super().__init__(link, domid, vdev_number(spec.vdev))
        self.spec = spec
        self.drive = link.drive(self.name, spec)
        self.disk: Disk = self.drive.disk
        self.read_bytes = self.written_bytes = 0
        self._size = self.disk.size
        self._work = DiskWork(self.disk)
        self._width = 64
        self._queues: list[_Queue] = []
        self._pending: list[tuple[int, int, _Waiting]] = []
        """Counted time: a heap by (due, number)."""
        self._under_way: dict[int, tuple[Job, _Waiting]] = {}
        """Real time: what threads are doing, by number."""
        self._numbers = 0

    @classmethod
    def made_again(
        cls, link: Link, name: DeviceName, _sink_for: Callable[[int], ConsoleSink], saved: Plain
    ) -> Self:
        """`Backend.made_again`: its disk is opened again."""
        spec = construct(DiskSpec, entries(saved, "").get("spec"), "spec")
        if spec.vdev is None or not looks_like_vdev(spec.vdev):
            raise refusal("spec", "names no device")
        return cls(link, name.domid, spec)

    # -- the handshake -----------------------------------------------------------------------------------

    def features(self) -> dict[str, Value]:
        """`XenbusBackend.features`."""
        writable = not self.disk.read_only
        return {
            "dev": self.spec.vdev or "",
            "device-type": "cdrom" if self.spec.cdrom else "disk",
            "mode": "w" if writable else "r",
            "type": "pyhv",
            "removable": int(self.spec.cdrom),
            "bootable": 1,
            "feature-barrier": int(writable),
            "feature-flush-cache": int(writable),
            "feature-discard": int(writable and self.disk.discard_granularity > 0),
            "discard-granularity": self.disk.discard_granularity or SECTOR_SIZE,
            "discard-alignment": 0,
            "discard-secure": 0,
            "feature-max-indirect-segments": MAX_INDIRECT_SEGMENTS,
            "max-ring-page-order": MAX_RING_ORDER,
            "multi-queue-max-queues": MOST_QUEUES,
        }

    def front_nodes(self) -> dict[str, Value]:
        """`XenbusBackend.front_nodes`."""
        return {"virtual-device": self.name.handle, "device-type": "cdrom" if self.spec.cdrom else "disk"}

    def connect(self) -> dict[str, Value]:
        """`XenbusBackend.connect`: one ring, or one for each queue."""
        protocol = self.front_text("protocol", "x86_64-abi")
        if protocol not in _PROTOCOLS:
            raise DeviceRefused(f"protocol is {protocol[:32]!r}, not one of {', '.join(_PROTOCOLS)}")
        self._width = _PROTOCOLS[protocol]
        order = self.front_int("ring-page-order", range(MAX_RING_ORDER + 1), -1)
        for below in self.front_queues():
            self._connect_queue(below, order)
        info = DiskFlag(0)
        if self.spec.cdrom:
            info |= DiskFlag.CDROM | DiskFlag.REMOVABLE
        if self.disk.read_only:
            info |= DiskFlag.READONLY
        sectors = self._size // SECTOR_SIZE
        return {
            "sectors": sectors,
            "sector-size": SECTOR_SIZE,
            "physical-sector-size": 4096,
            "info": int(info),
        }

    def _connect_queue(self, below: str, order: int) -> None:
        names = ["ring-ref"] if order < 0 else [f"ring-ref{number}" for number in range(1 << order)]
        handles, memory = self.borrow([self.front_ref(below + name) for name in names])
        port = self.bind(self.front_port(f"{below}event-channel"))
        self._queues.append(_Queue(self._ring(memory), handles, port))

    def _ring(self, memory: Borrowed) -> BackRing:
        return BackRing(memory, BlkifRequest.size(self._width))

    def disconnect(self) -> None:
        """`XenbusBackend.disconnect`: what is under way is done, and nobody is told."""
        self._queues.clear()
        self._pending.clear()
        self._under_way.clear()

    def detach(self) -> None:
        """`Backend.detach`."""
        super().detach()
        self.close()

    def let_go(self) -> None:
        """`Backend.let_go`."""
        super().let_go()
        self.close()

    def close(self) -> None:
        """The machine is no longer used, or the device: what was asked for is done first."""
        self._work.close()
        self.drive.let_go()

    # -- requests ----------------------------------------------------------------------------------------

    def serve(self) -> None:
        """`XenbusBackend.serve`: take all requests, of which some are answered at once."""
        for number, queue in enumerate(self._queues):
            ring = queue.ring
            while True:
                for _ in range(ring.unread()):
                    self._take(number, ring)
                if not ring.listen():
                    break
            self._tell(queue)

    def _take(self, number: int, ring: BackRing) -> None:
        width = self._width
        raw = ring.take(BlkifRequest.size(width))
        try:
            request = parse(raw, width, self._size, readonly=self.disk.read_only, read=self._read_page)
            data = self._gather(request)
        except (Unsupported, BadRequest, GrantError) as refused:
            identity, operation = header(raw, width)
            outcome = BlkifStatus.EOPNOTSUPP if isinstance(refused, Unsupported) else BlkifStatus.ERROR
            self._respond(ring, identity, operation, outcome)
            return
        self._start(number, request, data)

    def _read_page(self, ref: int, offset: int, length: int) -> bytes:
        return self.link.borrower.read(self.name.domid, ref, offset, length)

    def _gather(self, request: DiskRequest) -> bytes:
        """What a request writes, out of the guest's pages. GrantError."""
        if request.operation in (Operation.WRITE, Operation.WRITE_BARRIER):
            self.written_bytes += request.length
            read = self._read_page
            return b"".join([read(one.ref, one.offset, one.size) for one in request.segments])
        return b""

    def _start(self, queue: int, request: DiskRequest, data: bytes) -> None:
        clock = self.link.clock
        into = request.segments if request.operation is Operation.READ else []
        pending = _Waiting(queue, request.id, int(request.operation), into, 0, b"", "")
        self._numbers += 1
        if clock.counted:
            clock.work(_REQUEST_NS + _SEGMENT_NS * len(request.segments))
            result = self._work.do(request, data)
            pending.data, pending.error = result.data, result.error
            pending.due = self._work.due(request, clock.now())
            heapq.heappush(self._pending, (pending.due, self._numbers, pending))
        else:
            self._under_way[self._numbers] = self._work.start(request, data), pending

    # -- answers -----------------------------------------------------------------------------------------

    def next_deadline(self) -> int | None:
        """`Backend.next_deadline`."""
        if self._under_way:
            return self.link.clock.now() + LOOK_NS
        return self._pending[0][0] if self._pending else None

    def expire(self, now: int) -> None:
        """`Backend.expire`: answer what is done."""
        told = set()
        while self._pending and self._pending[0][0] <= now:
            pending = heapq.heappop(self._pending)[2]
            self._answer(pending, Done(pending.data, pending.error))
            told.add(pending.queue)
        for number in [number for number, (job, _) in self._under_way.items() if job.done()]:
            job, pending = self._under_way.pop(number)
            self._answer(pending, job.result())
            told.add(pending.queue)
        for queue in sorted(told):
            self._tell(self._queues[queue])

    def _answer(self, pending: _Waiting, result: Done) -> None:
        outcome = BlkifStatus.ERROR if result.error else BlkifStatus.OKAY
        if not result.error and pending.segments:
            try:
                self._scatter(pending, result.data)
            except GrantError:
                outcome = BlkifStatus.ERROR
        self._respond(self._queues[pending.queue].ring, pending.id, pending.operation, outcome)

    def _scatter(self, pending: _Waiting, data: bytes) -> None:
        """Copy what was read into the guest's pages. GrantError."""
        at, write, domid = 0, self.link.borrower.write, self.name.domid
        view = memoryview(data)
        for segment in pending.segments:
            write(domid, segment.ref, segment.offset, view[at : at + segment.size])
            at += segment.size
        self.read_bytes += at

    def _respond(self, ring: BackRing, identity: int, operation: int, outcome: BlkifStatus) -> None:
        response = BlkifResponse(id=identity, operation=operation, status=outcome)
        ring.put(response.pack(self._width))

    def _tell(self, queue: _Queue) -> None:
        if queue.ring.publish():
            self.link.channels.send(queue.port)

    # -- state -------------------------------------------------------------------------------------------

    def moment(self) -> DriveMoment:
        """What is on the disk now, with all that was asked for."""
        self._work.settle()
        return self.drive.moment()

    def state(self) -> dict[str, Plain]:
        """The connection, and requests that have no answer yet; what threads are doing is waited for."""
        waiting = [pending for _, _, pending in sorted(self._pending)]
        for job, pending in self._under_way.values():
            result = job.result()
            waiting.append(replace(pending, data=result.data, error=result.error))
        queues = [_SavedQueue(list(one.handles), one.port, one.ring.state()) for one in self._queues]
        return state(_Saved(self.spec, super().state(), self._width, queues, waiting, self._work.busy_until))

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
        found = construct(_Saved, dict(saved))
        super().restore(found.xenbus)
        if found.spec != self.spec:
            raise refusal("spec", "is that of another disk")
        if found.width not in _PROTOCOLS.values():
            raise refusal("width", "is that of no protocol")
        if len(found.queues) > MOST_QUEUES:
            raise refusal("queues", "are too many")
        self.check_rings([one.port for one in found.queues], [one.handles for one in found.queues], _PAGES)
        self._width, self._work.busy_until = found.width, found.busy_until
        self._queues = []
        for one in found.queues:
            ring = self._ring(self.borrowed(one.handles))
            restore(ring, one.ring, "ring")
            self._queues.append(_Queue(ring, one.handles, one.port))
        self._take_over(found.pending)

    def _take_over(self, pending: list[_Waiting]) -> None:
        """Requests that are done and have not been answered."""
        waiting = [0] * len(self._queues)
        for one in pending:
            if one.queue >= len(self._queues):
                raise refusal("pending", "has one of a queue that there is not")
            waiting[one.queue] += 1
            if any(not each.first <= each.last < SECTORS_PER_PAGE for each in one.segments):
                raise refusal("pending", "has one with sectors beyond a page")
            if not one.error and sum(each.size for each in one.segments) != len(one.data):
                raise refusal("pending", "has one whose data are not what it reads")
        if waiting != [queue.ring.in_the_works for queue in self._queues]:
            raise refusal("pending", "are not those that the rings have in the works")
        self._under_way.clear()
        self._pending = [(one.due, number, one) for number, one in enumerate(pending)]
        self._numbers = len(pending)
        heapq.heapify(self._pending)
