# SPDX-License-Identifier: GPL-2.0-only
"""What a disk has to do for its guest, and when it is done.

In real time the work is done by a few threads of the disk's own, so that a slow disk stops nobody but those
who wait for it; whether it is done is looked at now and then (`LOOK_NS`).

In counted time a run must not depend on how fast the host's disk is. There the work is done when it is asked
for, and the guest hears of it when a disk of `Model` would have done it:

    asked for     transfer: one after the other, `rate` bytes a second     `latency` later: done
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from pyhv.abi.blkif import Operation
from pyhv.devices.blkrequest import DiskRequest
from pyhv.frozen import frozen
from pyhv.storage.disk import Disk, DiskError

THREADS: Final = 4
"""Of one disk: so many of its requests are in the host's hands at a time."""
LOOK_NS: Final = 100_000
"""Real time: how soon a disk looks whether something is done."""


@frozen
class Model:
    """A disk's speed in counted time."""

    rate: int = 1_000_000_000
    """Bytes a second."""
    latency_ns: int = 60_000
    flush_ns: int = 300_000
    """A flush takes that much longer."""


USUAL: Final = Model()


@frozen
class Done:
    """What became of a request: what was read, or why it failed."""

    data: bytes = b""
    error: str = ""


Job = Future[Done]


class DiskWork:
    """One disk's work. `close` when its device is gone."""

    def __init__(self, disk: Disk, model: Model = USUAL) -> None:
        self.disk = disk
        self.model = model
        self.busy_until = 0
        """Counted time: when the last transfer ends (ns)."""
        self._pool: ThreadPoolExecutor | None = None
        self._writes: set[Future[Done]] = set()
        """That are not done."""

    def start(self, request: DiskRequest, data: bytes) -> Job:
        """Have a request done by a thread; `data` is what it writes."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="pyhv-disk")
        self._writes = {job for job in self._writes if not job.done()}
        earlier = tuple(self._writes) if request.operation in _ORDERED else ()
        job = self._pool.submit(self._after, earlier, request, data)
        if request.operation is not Operation.READ:
            self._writes.add(job)
        return job

    def _after(self, earlier: tuple[Job, ...], request: DiskRequest, data: bytes) -> Done:
        # Jobs begin in their order, so that those waited for are being done by other threads, or are done.
        wait(earlier)
        return self.do(request, data)

    def do(self, request: DiskRequest, data: bytes) -> Done:
        """Do it now, and here."""
        try:
            return Done(_DO[request.operation](self.disk, request, data) or b"")
        except DiskError as error:
            return Done(error=str(error))

    def due(self, request: DiskRequest, now: int) -> int:
        """When a request is done that was asked for `now` (ns), in counted time."""
        model = self.model
        self.busy_until = max(now, self.busy_until) + request.length * 1_000_000_000 // model.rate
        return self.busy_until + model.latency_ns + (model.flush_ns if request.operation in _ORDERED else 0)

    def settle(self) -> None:
        """Wait until all that was asked for is done, well or not."""
        wait(self._writes)
        self._writes.clear()

    def close(self) -> None:
        """Wait for what was asked for; the disk itself is its owner's."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _read(disk: Disk, request: DiskRequest, _data: bytes) -> bytes:
    return disk.read(request.offset, request.length)


def _write(disk: Disk, request: DiskRequest, data: bytes) -> None:
    disk.write(request.offset, data)


def _write_through(disk: Disk, request: DiskRequest, data: bytes) -> None:
    disk.flush()
    if data:
        disk.write(request.offset, data)
        disk.flush()


def _flush(disk: Disk, _request: DiskRequest, _data: bytes) -> None:
    disk.flush()


def _discard(disk: Disk, request: DiskRequest, _data: bytes) -> None:
    disk.discard(request.offset, request.length)


_ORDERED: Final = frozenset({Operation.FLUSH_DISKCACHE, Operation.WRITE_BARRIER})
"""What is done only when all writes before it are."""
_DO: Final[dict[Operation, Callable[[Disk, DiskRequest, bytes], bytes | None]]] = {
    Operation.READ: _read,
    Operation.WRITE: _write,
    Operation.WRITE_BARRIER: _write_through,
    Operation.FLUSH_DISKCACHE: _flush,
    Operation.DISCARD: _discard,
}
