# SPDX-License-Identifier: GPL-2.0-only
"""Machines for tests as their markers want them: made for one test, or booted once and put back for each.

fresh ──► a machine without guests ──► boot: the guests of the markers, each until it is ready
Booted    the same, then a snapshot; before each further test the machine is put back to it
"""

import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pyhv.address import PAGE_SHIFT
from pyhv.api.guest import GuestFailed
from pyhv.api.wanted import Bootable
from pyhv.api.words import pages
from pyhv.errors import PyhvError
from pyhv.images import source as images
from pyhv.images.progress import SilentProgress
from pyhv.snapshot.snapshot import Snapshot
from pyhv.testing.guest_machine import image_of
from pyhv.testing.marker import GuestSpec, Wanted
from pyhv.testing.under_test import GuestUnderTest, MachineUnderTest, Patience

__tracebackhide__ = True

ROOM: Final = 1 << (30 - PAGE_SHIFT)
"""Pages of a machine whose test has no markers: 1 GiB, of which the host gives what is used."""
_KEPT: Final = 3
"""Booted machines that are kept: tests that want the same mostly stand side by side."""
SOURCE_MIB: Final = 16


def fresh(
    wanted: Wanted, *, seed: int, patience: Patience, streams: bool, record: Path | None = None
) -> MachineUnderTest:
    """A machine without guests, large enough for those that are wanted. PyhvError.

    `record` is where it is recorded if it is in real time, which has to be known from its beginning.
    """
    options: dict[str, Any] = {"virtual_time": True, "seed": seed} | dict(wanted.machine)
    if "memory" not in options:
        room = sum(_pages_of(one) for one in wanted.guests)
        options["memory"] = (room or ROOM) << PAGE_SHIFT
    options.setdefault("max_domains", len(wanted.guests))
    if not options["virtual_time"]:
        options["record"] = record
    return MachineUnderTest(patience=patience, streams=streams, **options)


def boot(machine: MachineUnderTest, wanted: Wanted) -> list[GuestUnderTest]:
    """The guests that are wanted, each booted until it is ready. PyhvError, GuestFailed."""
    guests = [_boot(machine, one) for one in wanted.guests]
    if len(guests) > 1:
        machine.introduce_peers()
    for guest, one in zip(guests, wanted.guests, strict=True):
        if one.ready is not None:
            guest.expect(one.ready, timeout=_BOOT_SECONDS)
    return guests


_BOOT_SECONDS: Final = 600.0
"""Of the machine's time, for a guest to be ready: the host's time ends first."""


def _boot(machine: MachineUnderTest, wanted: GuestSpec) -> GuestUnderTest:
    image, name, memory = _image(wanted)
    ramdisk = None if wanted.ramdisk is None else _path(str(wanted.ramdisk), wanted.beside)
    return machine.boot(
        image,
        name=wanted.name or name,
        memory=memory << 20 if wanted.memory is None else wanted.memory,
        vcpus=wanted.vcpus,
        append=wanted.append,
        weight=wanted.weight,
        cap=wanted.cap,
        ramdisk=ramdisk,
    )


def _pages_of(wanted: GuestSpec) -> int:
    """How much memory a guest will have. PyhvError."""
    return _image(wanted)[2] << 8 if wanted.memory is None else pages(wanted.memory)


def _image(wanted: GuestSpec) -> tuple[Bootable, str, int]:
    """The image of a guest, read or built once; its name, and its MiB of memory by default. PyhvError.

    What is built is given as bytes, which a recording keeps.
    """
    if wanted.written_out:
        return image_of(wanted.image), "guest", SOURCE_MIB
    path = _path(wanted.image, wanted.beside)
    if path.suffix == ".S" and path.is_file():
        return _built(path, path.stat().st_mtime_ns), path.stem, SOURCE_MIB
    word = str(path) if path.is_file() else wanted.image
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    source = _resolve(word, wanted.ramdisk is None, stamp)
    return source, source.name, source.memory


def _path(word: str, beside: Path) -> Path:
    """A file as a test names it: beside the test, or where pytest runs."""
    there = beside / word
    return there if there.exists() else Path(word)


@functools.lru_cache(maxsize=4)
def _resolve(word: str, with_ramdisk: bool, _stamp: int) -> images.Source:
    return images.resolve(word, SilentProgress, with_ramdisk=with_ramdisk)


@functools.lru_cache(maxsize=64)
def _built(path: Path, _stamp: int) -> bytes:
    from pyhv.guests.build import build  # brings the assembler

    return build(path)


class Booted:
    """The session's booted machines."""

    def __init__(self) -> None:
        self._machines: OrderedDict[Wanted, tuple[MachineUnderTest, Snapshot]] = OrderedDict()
        self._failed: dict[Wanted, str] = {}
        self._ruins: list[MachineUnderTest] = []
        """What could not be booted, until somebody has looked at it."""

    def get(
        self, wanted: Wanted, show: Callable[[MachineUnderTest], None], **options: Any
    ) -> tuple[MachineUnderTest, Snapshot]:
        """A machine whose guests are as they were when they had booted, and that moment.

        `show` is given it before anything is tried; `options` are as of `fresh`. PyhvError, GuestFailed; what
        could not be booted once is not tried again.
        """
        self._clear()
        if wanted in self._failed:
            raise GuestFailed(f"it could not be booted before in this session: {self._failed[wanted]}")
        if wanted in self._machines:
            self._machines.move_to_end(wanted)
            machine, snapshot = self._machines[wanted]
            show(machine)
            machine.revert(snapshot)
            machine.had = machine.guests
            return machine, snapshot
        while len(self._machines) >= _KEPT:
            self._machines.popitem(last=False)[1][0].close()
        machine = fresh(wanted, **options)
        show(machine)
        self._ruins.append(machine)
        try:
            boot(machine, wanted)
            self._machines[wanted] = machine, machine.snapshot()
        except PyhvError as error:
            self._failed[wanted] = str(error)
            raise
        self._ruins.remove(machine)
        return self._machines[wanted]

    def close(self) -> None:
        """Give all of them up."""
        self._clear()
        for machine, _ in self._machines.values():
            machine.close()
        self._machines.clear()

    def _clear(self) -> None:
        while self._ruins:
            self._ruins.pop().close()
