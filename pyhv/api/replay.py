# SPDX-License-Identifier: GPL-2.0-only
"""A recorded run once more.

    with pyhv.Replay("run.rec") as replay:
        replay.run(to=12.5)            # to a moment, or to its end
        guest = replay.machine.domains["debian"]

What comes in comes in again, at the same moments; the machine may be looked at whenever it rests. Whoever
lets something else in, or runs it by `replay.machine`, leaves the recorded run.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pyhv.api.console import Console
from pyhv.api.guest import Guest
from pyhv.api.machine import Machine
from pyhv.domain.domain import Domain
from pyhv.errors import PyhvError, ReplayError, SnapshotError
from pyhv.images import source as images
from pyhv.images.debian import STOCK
from pyhv.images.progress import SilentProgress
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.loader.origin import Origin, fingerprint, fingerprint_of
from pyhv.loader.ramdisk import MAX_RAMDISK
from pyhv.machine import Machine as Hypervisor
from pyhv.machine import MachineConfig
from pyhv.replay import log
from pyhv.replay.commands import CreateRecord
from pyhv.replay.entries import Base, Finish, RecordedRun, understood
from pyhv.replay.player import Player
from pyhv.resident import Ended
from pyhv.snapshot.compression import expand
from pyhv.snapshot.snapshot import Snapshot
from pyhv.storage.disk import Disk, Identity
from pyhv.storage.open import open_disk
from pyhv.storage.spec import TEMPORARY, DiskSpec
from pyhv.until import Exits, Forever, Nanoseconds, Outcome, Until


class Replay:
    """A machine that goes through a recorded run. A context manager, or `close` it.

    `verify` compares every checkpoint. `images` has kernels and ramdisks that are not to be found any more,
    by the fingerprint that a message names. ReplayError: the file is no recording, or what it needs is not
    there or has changed.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        verify: bool = False,
        tuned: bool = True,
        measure: bool = False,
        images: Mapping[str, bytes] | None = None,
    ) -> None:
        self.path = Path(path)
        self.on_guest: Callable[[Guest], None] = lambda _guest: None
        """Told of each guest that comes while it runs."""
        with self._named():
            self.recording = understood(log.read(self.path))
            self._cast = _Cast(self.recording, dict(images or {}), self._tell)
            self.machine = _machine(self.recording, self.path.parent, tuned=tuned, measure=measure)
            self.machine.hypervisor.dom0.open_disk = _Disks(self.recording).open
        self._cast.machine = self.machine
        try:
            with self._named():
                self._player = Player(
                    self.machine.hypervisor, self.recording.entries, self._cast, verify=verify
                )
                self.machine.hypervisor.pcpu.turns = self.recording.head.turns
                self._cast.player = self._player
                self._player.begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back all memory and threads."""
        self.machine.close()

    def run(
        self, *, to: float | None = None, to_exit: int | None = None, until: Until | None = None
    ) -> Outcome | None:
        """Run to a second of machine time, an exit of the guests, or what `until` says; None: to the end.

        Diverged: it is not the recorded run. ReplayError: something that it needs is missing.
        """
        policy: Until = until or Forever()
        machine = self.machine.hypervisor
        if to is not None:
            policy |= Nanoseconds(max(round(to * 1e9) - machine.now(), 0))
        if to_exit is not None:
            policy |= Exits(max(to_exit - machine.position.exits, 0))
        with self._named():
            return self._player.run(policy)

    @property
    def finish(self) -> Finish | None:
        """How the recorded run ended, once it has; None also where the recording has no end."""
        return self.recording.finish if self._player.next_entry is None else None

    @property
    def compared(self) -> int:
        """How many checkpoints were compared, and were the same."""
        return self._player.compared

    def verdict(self, guest: Guest) -> str:
        """How a guest's output was judged, as `pyhv boot` was told; empty: not at all."""
        return self._cast.verdicts.get(guest.domid, "")

    def _tell(self, guest: Guest) -> None:
        self.on_guest(guest)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What is said against the recording names its file."""
        try:
            yield
        except ReplayError as error:
            raise type(error)(f"{self.path}: {error}") from error


def _machine(recording: RecordedRun, folder: Path, *, tuned: bool, measure: bool) -> Machine:
    """A machine as the recorded one was when it began. ReplayError."""
    head = recording.head
    if head.base is not None:
        snapshot = _snapshot(head.base, folder)
        made = Machine.of(snapshot, tuned=tuned, measure=measure)
        if not made.hypervisor.clock.counted:
            made.close()
            raise ReplayError("begins with a snapshot of real time, which cannot be replayed")
        return made
    config = head.config
    try:
        hypervisor = Hypervisor(
            MachineConfig(
                config.memory_pages, max_domains=config.max_domains, scheduler=config.scheduler,
                virtual_time=True, seed=config.seed_number(), tuned=tuned, measure=measure,
                wall_ns=head.wall_ns,
            )
        )  # fmt: skip
    except PyhvError as error:
        raise ReplayError(f"speaks of a machine that cannot be: {error}") from error
    return Machine.over(hypervisor)


def _snapshot(base: Base, folder: Path) -> Snapshot:
    path = folder / base.file
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ReplayError(f"begins with the snapshot {path}, which cannot be read ({error})") from error
    if hashlib.blake2b(data, digest_size=16).digest() != base.digest:
        raise ReplayError(f"begins with the snapshot {path}, which has changed since")
    try:
        return Snapshot.load(path)
    except SnapshotError as error:
        raise ReplayError(f"begins with a snapshot that cannot be used: {error}") from error


class _Disks:
    """The disks of a replay: what its guests write is thrown away."""

    def __init__(self, recording: RecordedRun) -> None:
        self._known: dict[str, Identity] = {}
        for topic, data in recording.notes:
            match topic, data:
                case "disk", [str(path), int(size), int(mtime)]:
                    self._known.setdefault(path, Identity(path, size, mtime))

    def open(self, spec: DiskSpec) -> Disk:
        """A disk as it was when the run began. ReplayError: it has changed since; DiskError."""
        mine = spec if spec.overlay or not spec.may_write else replace(spec, overlay=TEMPORARY)
        disk = open_disk(mine)
        for file in disk.identity():
            if self._known.get(file.path, file) != file:
                disk.close()
                raise ReplayError(
                    f"{file.path} has changed since it was recorded: with --overlay a disk is kept as it is"
                )
        return disk


class _Cast:
    """Images and guests of a replay."""

    machine: Machine
    player: Player

    def __init__(
        self, recording: RecordedRun, given: dict[str, bytes], on_guest: Callable[[Guest], None]
    ) -> None:
        self._recording = recording
        self._given = given
        self._on_guest = on_guest
        self._console = Console()
        self._found: dict[Origin, images.Source] = {}
        self._image: KernelImage | None = None
        self.verdicts: dict[int, str] = {}
        for topic, data in recording.notes:
            match topic, data:
                case "verdict", [int(domid), str(name)]:
                    self.verdicts[domid] = name

    # -- Cast --------------------------------------------------------------------------------------------

    def find(self, record: CreateRecord) -> tuple[KernelImage, bytes]:
        """`Cast.find`."""
        name = record.config.name
        image = self._image = self._kernel(record, name)
        if not record.ramdisk:
            return image, b""
        ramdisk = self._ramdisk(record, name)
        if fingerprint_of(ramdisk) != record.ramdisk:
            raise ReplayError(
                f"the ramdisk of {name} ({record.origin.ramdisk or record.origin.image or 'given as bytes'})"
                " has changed since it was recorded"
            )
        return image, ramdisk

    def console(self, _record: CreateRecord) -> Console:
        """`Cast.console`."""
        self._console = Console()
        return self._console

    def created(self, domain: Domain, _record: CreateRecord) -> None:
        """`Cast.created`."""
        named = None if self._image is None else self._image.symbol_table
        guest = self.machine.take_in(domain, self._console, named)
        guest.verdict = self.verdicts.get(domain.domid, "")
        self._on_guest(guest)

    def ended(self, ended: Ended) -> None:
        """`Cast.ended`."""
        self.machine.has_ended(ended)
        self.player.ended(ended.domid)

    # ----------------------------------------------------------------------------------------------------

    def _kernel(self, record: CreateRecord, name: str) -> KernelImage:
        content = self._content(record.image)
        if content is not None:
            image = load_image(content, name)
        elif record.origin.image:
            image = self._source(record.origin).image
        else:
            raise ReplayError(
                f"the kernel of {name} came as bytes and is not kept in the recording:"
                f" give it as images={{{record.image.hex()!r}: ...}}"
            )
        if fingerprint(image) != record.image:
            raise ReplayError(
                f"the kernel of {name} ({record.origin.image or 'given as bytes'}) has changed since it was"
                " recorded"
            )
        return image

    def _ramdisk(self, record: CreateRecord, name: str) -> bytes:
        origin, content = record.origin, self._content(record.ramdisk)
        if content is not None:
            return content
        if origin.ramdisk:
            return images.ramdisk(Path(origin.ramdisk), raw=origin.raw_ramdisk).data
        found = self._source(origin).ramdisk if origin.image and origin.ramdisk is None else None
        if found is None:
            raise ReplayError(
                f"the ramdisk of {name} came as bytes and is not kept in the recording:"
                f" give it as images={{{record.ramdisk.hex()!r}: ...}}"
            )
        return found.data

    def _content(self, key: bytes) -> bytes | None:
        given = self._given.get(key.hex())
        kept = self._recording.contents.get(key)
        if given is not None or kept is None:
            return given
        try:
            return expand(kept, "an image", at_most=MAX_RAMDISK)
        except SnapshotError as error:
            raise ReplayError(str(error)) from error

    def _source(self, origin: Origin) -> images.Source:
        found = self._found.get(origin)
        if found is None:
            try:
                found = images.resolve(
                    origin.image, SilentProgress, with_ramdisk=origin.ramdisk is None,
                    raw_ramdisk=origin.raw_ramdisk, drivers=origin.drivers, flavour=origin.flavour or STOCK,
                    suite=origin.suite,
                )  # fmt: skip
            except PyhvError as error:
                raise ReplayError(f"an image that was recorded cannot be had: {error}") from error
            self._found[origin] = found
        return found
