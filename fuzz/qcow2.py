# SPDX-License-Identifier: GPL-2.0-only
"""Target `qcow2`: images that were changed on purpose, used as a guest's disk.

A few sound images - with small clusters and large ones, of both versions, with a base, compressed clusters,
refcounts of one bit - are made once. An input says what is changed in one of them: fields of the header,
entries of L1, L2 and the refcount table become places that are plausible, odd or those of other tables;
refcounts, bytes of anything, the length. Then it is read, written, discarded, flushed, opened again and
checked.

Only DiskError may come out. No byte outside the image changes, its base least of all, and it does not grow
without end. An image whose tables were not touched refuses nothing, is one array of bytes, and is sound at
the end.
"""

import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path

from fuzz.source import Source
from fuzz.target import Finding, Target, arm
from pyhv.storage.disk import Disk, DiskError
from pyhv.storage.hostfile import HostFile
from pyhv.storage.images import check
from pyhv.storage.open import open_image
from pyhv.storage.qcow2.create import create

_SIZE = 256 << 10
_BASE = bytes(n * 7 & 0xFF for n in range(_SIZE // 2))
_FIELDS = (
    (0, 4), (4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4),
    (64, 8), (72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 4), (108, 4), (112, 8), (120, 8),
)  # fmt: skip
"""Of the header: where, and how many bytes."""
_NUMBERS = (
    0, 1, 2, 3, 7, 8, 9, 12, 16, 21, 22, 63, 64, 72, 104, 112, 511, 512, 513, 1 << 10, 1 << 12, 1 << 16,
    1 << 20, 1 << 31, 1 << 32, 1 << 55, 1 << 56, 1 << 61, 1 << 62, 1 << 63,
    (1 << 32) - 1, (1 << 56) - 512, (1 << 64) - 512, (1 << 64) - 1,
)  # fmt: skip
_LARGEST = 64 << 20
"""Bytes that an image of so small a disk may have, however it was used: the smallest refcount blocks count
less."""
_COPIED = 1 << 63
_COMPRESSED = 1 << 62


@cache
def _seeds() -> tuple[tuple[bytes, bytes], ...]:
    """Sound images, each as the bytes of its file and of its disk."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "seed"
        (Path(directory) / "base").write_bytes(_BASE)
        found = []
        for bits, base in ((9, None), (12, None), (16, None), (9, "base"), (12, "base")):
            file = HostFile.create(path)
            create(file, _SIZE, cluster_bits=bits, base=base, base_format="raw" if base else None)
            file.close()
            with open_image(path, "qcow2", writable=True) as disk:
                disk.write(5000, b"seed" * 3000)
                disk.zero(64 << 10, 32 << 10)
                disk.write(_SIZE - 700, b"end" * 100)
            found.append((path.read_bytes(), _content(_BASE if base else b"")))
            path.unlink()
    compressed = bytearray(found[1][1])
    compressed[20 * 4096 : 22 * 4096] = bytes([20]) * 4096 + bytes([21]) * 4096
    return (*found, (_compressed(found[1][0]), bytes(compressed)), (_old(found[0][0]), found[0][1]))


def _content(base: bytes) -> bytes:
    """What the disk of a seed holds."""
    content = bytearray(base.ljust(_SIZE, b"\0"))
    content[5000:17000] = b"seed" * 3000
    content[64 << 10 : 96 << 10] = bytes(32 << 10)
    content[_SIZE - 700 : _SIZE - 400] = b"end" * 100
    return bytes(content)


def _compressed(image: bytes) -> bytes:
    """With two clusters that are compressed, one behind the other."""
    changed = bytearray(image)
    l2 = _place(changed, _place(changed, 40))
    packed = b""
    start = len(changed)
    for number in (20, 21):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
        one = deflate.compress(bytes([number]) * 4096) + deflate.flush()
        place = start + len(packed)
        sectors = (place % 512 + len(one) - 1) // 512
        struct.pack_into(">Q", changed, l2 + 8 * number, _COMPRESSED | sectors << 58 | place)
        packed += one
    struct.pack_into(">H", changed, _place(changed, _place(changed, 48)) + 2 * (start // 4096), 2)
    return bytes(changed) + packed.ljust(4096, b"\0")


def _old(image: bytes) -> bytes:
    """Of version 2, which has no zeros in its entries; what has become zeros is nothing."""
    changed = bytearray(image)
    struct.pack_into(">I", changed, 4, 2)
    changed[72:104] = bytes(32)
    return bytes(changed)


def _place(image: bytes | bytearray, at: int) -> int:
    return int.from_bytes(image[at : at + 8], "big") & 0xFF_FFFF_FFFF_FE00


class _Image:
    """An image that is being changed as an input says."""

    def __init__(self, source: Source) -> None:
        self._source = source
        raw, self._content = source.pick(_seeds())
        self.raw = bytearray(raw)
        self._bits = self.raw[23]
        self._touched = False

    @property
    def content(self) -> bytearray | None:
        """What its disk holds; None: that cannot be known, since it was changed."""
        return None if self._touched else bytearray(self._content)

    def make(self) -> bytes:
        """Its bytes."""
        for _ in range(self._source.below(4)):
            self._touched = True
            self._change()
        return bytes(self.raw)

    def _change(self) -> None:
        source = self._source
        how = source.u8()
        if how < 80:
            at, size = source.pick(_FIELDS)
            value = self._entry() if size == 8 else self._number()
            self._put(at, (value & (1 << 8 * size) - 1).to_bytes(size, "big"))
        elif how < 110:
            self._put(_place(self.raw, 40) + 8 * source.below(8), self._entry().to_bytes(8, "big"))
        elif how < 190:
            table = _place(self.raw, _place(self.raw, 40) + 8 * source.below(4))
            self._put(table + 8 * source.below(128), self._entry().to_bytes(8, "big"))
        elif how < 205:
            self._put(_place(self.raw, 48) + 8 * source.below(4), self._entry().to_bytes(8, "big"))
        elif how < 225:
            self._put(_place(self.raw, _place(self.raw, 48)) + 2 * source.below(128), source.raw(2))
        elif how < 245:
            self._put(source.number(3) % max(len(self.raw), 1), source.raw(1 + source.below(16)))
        else:
            del self.raw[source.number(3) % (len(self.raw) + 1) :]

    def _put(self, at: int, data: bytes) -> None:
        if at + len(data) <= len(self.raw):
            self.raw[at : at + len(data)] = data

    def _number(self) -> int:
        source = self._source
        return source.pick(_NUMBERS) if source.chance(180) else source.number(8)

    def _entry(self) -> int:
        """A place in the file, mostly, with flags, mostly those that fit."""
        source = self._source
        how = source.u8()
        if how < 130:
            entry = source.below(1 + (len(self.raw) >> self._bits) & 0xFF or 1) << self._bits
        elif how < 170:
            entry = _place(self.raw, source.pick((40, 48))) or 0
        elif how < 200:
            return _COMPRESSED | source.number(8) & (1 << 62) - 1
        else:
            return self._number() & (1 << 64) - 1
        return entry | source.pick((_COPIED, _COPIED, _COPIED, 0, _COPIED | 1, 1, 1 << 60, 2))


class _Use:
    """What a guest does with its disk."""

    def __init__(self, source: Source, disk: Disk, model: bytearray | None) -> None:
        self._source = source
        self._disk = disk
        self._model = model
        if model is not None and disk.read(0, disk.size) != model:
            raise Finding("read", "a sound image does not hold what it should")

    def act(self) -> None:
        """One request."""
        source, disk = self._source, self._disk
        how = source.u8()
        offset = source.number(3) * 64 % disk.size
        length = min(source.number(2) % 9000, disk.size - offset)
        if how < 90:
            found = disk.read(offset, length)
            if len(found) != length or (
                self._model is not None and found != self._model[offset : offset + length]
            ):
                raise Finding("read", f"{length} bytes at {offset} are not those that were there")
            return
        if disk.read_only:
            return
        if how < 180:
            data = bytes([how]) * length
            disk.write(offset, data)
            self._changed(offset, data)
        elif how < 200:
            disk.discard(offset, length)
            self._changed(offset, None if self._model is None else disk.read(offset, length))
        elif how < 220:
            disk.zero(offset, length)
            self._changed(offset, bytes(length))
        elif how < 240:
            disk.flush()
        else:
            list(disk.extents(offset, length))

    def _changed(self, offset: int, data: bytes | None) -> None:
        if self._model is not None and data is not None:
            self._model[offset : offset + len(data)] = data


class Qcow2(Target):
    """Opens an image that was changed, and uses it."""

    name = "qcow2"
    unit = "images"
    max_length = 160

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        """Images that were not refused."""

    def run(self, data: bytes) -> bytes:
        """One image."""
        source = Source(data)
        self.calls += 1
        self.steps = [0]
        self.started = True
        image = _Image(source)
        raw = image.make()
        arm()
        with tempfile.TemporaryDirectory(prefix="pyhv-fuzz-") as directory:
            path = Path(directory) / "image"
            path.write_bytes(raw)
            (path.parent / "base").write_bytes(_BASE)
            model = image.content
            self._check(path, sound=model is not None)
            for _ in range(1 + source.below(2)):
                self._use(source, path, model)
            self._check(path, sound=model is not None)
            self._surroundings(path)
        return source.used()

    def _use(self, source: Source, path: Path, model: bytearray | None) -> None:
        sound = model is not None
        try:
            disk = open_image(path, "qcow2", writable=not source.chance(64))
        except DiskError:
            if sound:
                raise
            return
        self.opened += 1
        use = None
        for _ in range(1 + source.below(12)):
            arm()
            try:
                use = use or _Use(source, disk, model)
                use.act()
            except DiskError:
                if sound:
                    raise
        try:
            disk.close()
        except DiskError:
            if sound:
                raise

    def _check(self, path: Path, *, sound: bool) -> None:
        arm()
        try:
            found = check(path, "qcow2")
        except DiskError:
            if sound:
                raise
            return
        if sound and found.errors:
            raise Finding("check", found.told[0])

    def _surroundings(self, path: Path) -> None:
        if sorted(other.name for other in path.parent.iterdir()) != ["base", "image"]:
            raise Finding("surroundings", "a file was made beside the image")
        if (path.parent / "base").read_bytes() != _BASE:
            raise Finding("surroundings", "the base was written")
        if path.stat().st_size > _LARGEST:
            raise Finding("size", f"the image has become {path.stat().st_size} bytes long")

    def finish(self) -> None:
        """Nothing is kept."""

    def abandon(self) -> None:
        """Nothing is kept."""
        self.started = True
