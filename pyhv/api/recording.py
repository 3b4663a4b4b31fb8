# SPDX-License-Identifier: GPL-2.0-only
"""A recording as its user handles it: while a machine runs, all that the run depends on is written down.

    with pyhv.Machine(virtual_time=True, record="run.rec") as machine: ...

`pyhv.Replay` has the same run again.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

import zstandard

from pyhv.errors import ReplayError
from pyhv.loader.image import KernelImage
from pyhv.loader.origin import fingerprint, fingerprint_of
from pyhv.machine import Machine as Hypervisor
from pyhv.replay.entries import Base
from pyhv.replay.log import LogWriter
from pyhv.replay.recorder import Recorder
from pyhv.snapshot.snapshot import Snapshot

MOST_KEPT: Final = 4 << 20
"""Bytes, compressed, up to which an image that came as bytes is kept in the recording."""
DISK: Final = "disk"
"""Topic of a note: a file that a disk consisted of when it was plugged in, as an `Identity`."""
VERDICT: Final = "verdict"
"""Topic of a note: how a guest's output is judged, as [domid, name of the convention]."""


class Recording:
    """What a machine is being recorded to. Not while it runs: `close`, `save`."""

    def __init__(self, hypervisor: Hypervisor, path: Path | None, base: Snapshot | None) -> None:
        """`base` is the moment at which the machine is, if it has guests already. ReplayError."""
        self.path = path
        """The file; None: it is kept in memory until `save`."""
        self._base = base
        self._keeps: set[bytes] = set()
        if not hypervisor.clock.counted:
            raise ReplayError("a machine whose time is the host's cannot be recorded: have it made for that")
        named = None
        if base is not None:
            if path is None:
                raise ReplayError(
                    "a recording that begins with guests needs a file: their snapshot's is beside it"
                )
            named = _beside(path, base)
        self._log = LogWriter(path)
        try:
            self._recorder: Recorder | None = Recorder(hypervisor, self._log, named)
        except ReplayError:
            self._log.close()
            raise

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._log.size

    @property
    def active(self) -> bool:
        """Whether it goes on."""
        return self._recorder is not None

    def check(self) -> None:
        """Take a checkpoint now; they are taken now and then anyhow."""
        if self._recorder is not None:
            self._recorder.check()

    def keep(self, image: KernelImage | None, content: bytes, *, ramdisk: bool = False) -> None:
        """Keep what came as bytes and could not be found again, unless it is large."""
        key = fingerprint_of(content) if image is None else fingerprint(image)
        if self._recorder is None or key in self._keeps:
            return
        self._keeps.add(key)
        compressed = zstandard.ZstdCompressor().compress(content)
        if len(compressed) <= MOST_KEPT:
            self._recorder.keep(key, compressed)

    def note(self, topic: str, *data: int | str) -> None:
        """Something that whoever replays wants to know."""
        if self._recorder is not None:
            self._recorder.note(topic, list(data))

    def close(self, outcome: str = "closed", exit_code: int | None = None) -> None:
        """The run is over: no more is recorded. Once is enough."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.end(outcome, exit_code)

    def save(self, path: Path | str) -> None:
        """Write what was recorded so far to a file. ReplayError."""
        self._log.save(Path(path))


def _beside(path: Path, snapshot: Snapshot) -> Base:
    """The snapshot's file: the one that it was read from, or a new one beside the recording's."""
    file = Path(snapshot.origin) if snapshot.origin else path.with_name(path.name + ".snap")
    if not snapshot.origin:
        snapshot.save(file)
    try:
        digest = hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    except OSError as error:
        raise ReplayError(f"{file}: cannot be read ({error.strerror})") from error
    return Base(os.path.relpath(file, path.parent), digest)
