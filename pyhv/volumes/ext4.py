# SPDX-License-Identifier: GPL-2.0-only
"""Files of ext2, ext3 and ext4, for reading. The layout is that of Linux' documentation (filesystems/ext4).

    superblock, at 1024 ──► group descriptors ──► inode tables ──► inode ──► its blocks
                                                                   extents, a list of blocks, or inline

A journal is not replayed: what is in it only is not seen. Nothing is believed: blocks lie within the file
system, trees of extents get shallower and their blocks go up, and a loop ends with the bytes asked for.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from pyhv.errors import VolumeError
from pyhv.volumes.window import Fields, Window, uuid_text

MAX_DIRECTORY: Final = 4 << 20
"""Bytes of a directory that is read."""
MAX_LINKS: Final = 16
"""Symbolic links on the way to a file."""
MAX_PATH: Final = 4096

_SUPERBLOCK: Final = 1024
_MAGIC: Final = 0xEF53
_ROOT: Final = 2
_DIRECTORY, _REGULAR, _LINK = 0x4000, 0x8000, 0xA000
_EXTENTS, _INLINE, _ENCRYPTED, _COMPRESSED = 0x80000, 0x10000000, 0x800, 0x4
_EXTENT_MAGIC: Final = 0xF30A
_MAX_DEPTH: Final = 5
_UNWRITTEN: Final = 32768
"""Longer extents hold no data yet, and are that much shorter."""

_COMPAT: Final = {2: "has_journal", 3: "ext_attr", 4: "resize_inode", 5: "dir_index", 9: "sparse_super2",
                  12: "orphan_file"}  # fmt: skip
_INCOMPAT: Final = {
    0: "compression", 1: "filetype", 2: "needs_recovery", 3: "journal_dev", 4: "meta_bg", 6: "extent",
    7: "64bit", 8: "mmp", 9: "flex_bg", 10: "ea_inode", 12: "dirdata", 13: "csum_seed", 14: "largedir",
    15: "inline_data", 16: "encrypt", 17: "casefold",
}  # fmt: skip
_RO_COMPAT: Final = {
    0: "sparse_super", 1: "large_file", 3: "huge_file", 4: "gdt_csum", 5: "dir_nlink", 6: "extra_isize",
    8: "quota", 9: "bigalloc", 10: "metadata_csum", 12: "read-only", 13: "project", 15: "verity",
    16: "orphan_present",
}  # fmt: skip
_UNREADABLE: Final = 1 << 0 | 1 << 3
"""Incompatible features with which files lie elsewhere or otherwise."""


class Superblock:
    """What the superblock says; only its magic number has been looked at."""

    def __init__(self, part: Window) -> None:
        told = Fields(part.peek(_SUPERBLOCK, 1024))
        self.inodes = told.u32(0x00)
        self.first_block = told.u32(0x14)
        self.log_block = told.u32(0x18)
        self.block_size = 1024 << min(self.log_block, 7)
        self.blocks_per_group = told.u32(0x20)
        self.inodes_per_group = told.u32(0x28)
        revision = told.u32(0x4C)
        self.clean = told.u16(0x3A) & 3 == 1
        self.inode_size = told.u16(0x58) if revision else 128
        self._compat, self.incompat, self._ro_compat = (
            (told.u32(0x5C), told.u32(0x60), told.u32(0x64)) if revision else (0, 0, 0)
        )
        wide = self.incompat >> 7 & 1
        self.blocks = told.u32(0x04) | (told.u32(0x150) << 32 if wide else 0)
        self.size = self.blocks * self.block_size
        self.uuid = uuid_text(told.data[0x68:0x78])
        self.label = told.text(0x78, 16)
        self.descriptor_size = told.u16(0xFE) if wide else 32
        self.first_meta_group = told.u32(0x104) if self.incompat >> 4 & 1 else None
        self.needs_recovery = bool(self.incompat >> 2 & 1)

    @property
    def kind(self) -> str:
        """As blkid names it."""
        if self.incompat & (1 << 6 | 1 << 7 | 1 << 9) or self._ro_compat & ~0x7:
            return "ext4"
        return "ext3" if self._compat >> 2 & 1 else "ext2"

    @property
    def features(self) -> tuple[str, ...]:
        """In the words of dumpe2fs."""
        words = []
        for bits, names in (
            (self._compat, _COMPAT),
            (self.incompat, _INCOMPAT),
            (self._ro_compat, _RO_COMPAT),
        ):
            words += [names.get(bit, f"bit {bit}") for bit in range(32) if bits >> bit & 1]
        return tuple(words)

    def check(self, part: Window) -> None:
        """VolumeError: the numbers cannot be those of a file system."""
        block, inode = self.block_size, self.inode_size
        sane = (
            self.log_block <= 6
            and 128 <= inode <= block
            and inode & (inode - 1) == 0
            and 0 < self.inodes_per_group <= 8 * block
            and 0 < self.blocks_per_group <= 8 * block << 16  # with bigalloc, up to 2^16 blocks a bit
            and self.first_block < self.blocks
            and self.first_block in ((0, 1) if block == 1024 else (0,))
            and 32 <= self.descriptor_size <= 1024
            and self.descriptor_size & (self.descriptor_size - 1) == 0
        )
        if not sane:
            raise VolumeError(f"{part.name}: its superblock is damaged")
        if self.incompat & _UNREADABLE:
            raise VolumeError(f"{part.name}: files are not read from an ext file system with such features")


class _Inode(NamedTuple):
    number: int
    kind: int
    size: int
    flags: int
    blocks: bytes
    """The 60 bytes that say where its blocks are."""
    attributes: bytes
    """What the inode has behind its fields."""


class _Run(NamedTuple):
    """Blocks of a file in a row: `physical` None is a hole, and reads as zeros."""

    logical: int
    length: int
    physical: int | None


def is_ext(part: Window) -> bool:
    """Whether there is a superblock."""
    return Fields(part.peek(_SUPERBLOCK + 0x38, 2)).u16(0) == _MAGIC


class Ext:
    """The files (`filesystem.Files`). VolumeError: the superblock is damaged."""

    def __init__(self, part: Window) -> None:
        self._part = part
        self._super = Superblock(part)
        self._super.check(part)

    def read_file(self, path: str, most: int) -> bytes:
        """A regular file."""
        inode = self._find(path)
        if inode.kind != _REGULAR:
            raise self._damage(f"{path} is no regular file")
        return self._content(inode, most, path)

    def names(self, path: str) -> list[str]:
        """What is in a directory."""
        inode = self._find(path)
        found = {raw.decode("utf-8", "replace") for raw, _ in self._entries(inode, path)}
        return sorted(found - {".", ".."})

    def inode_table(self, group: int) -> int:
        """Where the inodes of a block group are, in bytes."""
        wide = self._super.descriptor_size >= 64
        descriptor = Fields(self._part.read(self._descriptor(group), self._super.descriptor_size))
        return self._block(descriptor.u32(8) | (descriptor.u32(0x28) << 32 if wide else 0))

    def _damage(self, what: str) -> VolumeError:
        return VolumeError(f"{self._part.name}: {what}")

    # -- from a path to an inode ------------------------------------------------------------------------

    def _find(self, path: str) -> _Inode:
        """The inode that a path leads to, links followed."""
        ahead, here, links = _components(path), [self._inode(_ROOT)], 0
        while ahead:
            name = ahead.pop()
            if name == b"..":
                here = here[:-1] or here
                continue
            inode = self._inode(self._look_up(here[-1], name, path))
            if inode.kind != _LINK:
                here.append(inode)
                continue
            links += 1
            target = self._target(inode, path)
            if links > MAX_LINKS or len(target) > MAX_PATH:
                raise self._damage(f"{path} leads through more than {MAX_LINKS} symbolic links")
            ahead += _components(target)
            here = here[:1] if target.startswith(b"/") else here
        return here[-1]

    def _look_up(self, directory: _Inode, name: bytes, path: str) -> int:
        for found, number in self._entries(directory, path):
            if found == name:
                return number
        raise self._damage(f"there is no {path}")

    def _entries(self, inode: _Inode, path: str) -> Iterator[tuple[bytes, int]]:
        """Names and inode numbers of a directory. Its index, if it has one, looks like empty entries."""
        if inode.kind != _DIRECTORY:
            raise self._damage(f"{path}: there is a file where a directory should be")
        data = self._content(inode, MAX_DIRECTORY, path)
        if inode.flags & _INLINE:  # its parent's number takes the place of "." and ".."
            yield from self._entries_in(data[4:60], path)
            yield from self._entries_in(data[60:], path)
            return
        for at in range(0, len(data), self._super.block_size):
            yield from self._entries_in(data[at : at + self._super.block_size], path)

    def _entries_in(self, block: bytes, path: str) -> Iterator[tuple[bytes, int]]:
        told, at = Fields(block), 0
        while at + 8 <= len(block):
            number, length, name_length = told.u32(at), told.u16(at + 4), told.u8(at + 6)
            if length in (0, 0xFFFF) and len(block) == 1 << 16:
                length = 1 << 16
            if length < 8 or length & 3 or at + length > len(block) or name_length > length - 8:
                raise self._damage(f"{path}: a directory on the way is damaged")
            if number:
                yield block[at + 8 : at + 8 + name_length], number
            at += length

    def _target(self, inode: _Inode, path: str) -> bytes:
        if not 0 < inode.size < MAX_PATH:
            raise self._damage(f"{path}: a symbolic link on the way is damaged")
        fast = inode.size < 60 and not inode.flags & (_EXTENTS | _INLINE)
        return inode.blocks[: inode.size] if fast else self._content(inode, MAX_PATH, path)

    # -- from a number to an inode ----------------------------------------------------------------------

    def _inode(self, number: int) -> _Inode:
        told = self._super
        if not 1 <= number <= told.inodes:
            raise self._damage(f"a directory names inode {number}, and there are {told.inodes}")
        group, index = divmod(number - 1, told.inodes_per_group)
        at = self.inode_table(group) + index * told.inode_size
        raw = Fields(self._part.read(at, told.inode_size))
        kind = raw.u16(0) & 0xF000
        large = raw.u32(0x6C) << 32 if kind == _REGULAR or told.incompat >> 14 & 1 else 0
        extra = raw.u16(0x80) if told.inode_size > 128 else 0
        return _Inode(
            number, kind, raw.u32(4) | large, raw.u32(0x20), raw.data[0x28:0x64], raw.data[128 + extra :]
        )

    def _descriptor(self, group: int) -> int:
        """Where a group's descriptor is, in bytes."""
        told = self._super
        per_block = told.block_size // told.descriptor_size
        index, slot = divmod(group, per_block)
        block = _SUPERBLOCK // told.block_size + 1 + index  # behind the superblock's own
        if told.first_meta_group is not None and index >= told.first_meta_group:
            first = index * per_block
            has_super = _has_super(first) or "sparse_super" not in told.features
            block = told.first_block + first * told.blocks_per_group + has_super
        return self._block(block) + slot * told.descriptor_size

    def _block(self, number: int) -> int:
        """Where a block is, in bytes."""
        if not 0 < number < max(self._super.blocks, 1):
            raise self._damage(f"it refers to block {number}, and has {self._super.blocks}")
        return number * self._super.block_size

    # -- from an inode to its bytes ---------------------------------------------------------------------

    def _content(self, inode: _Inode, most: int, path: str) -> bytes:
        if inode.size > most:
            raise self._damage(f"{path} is {inode.size} bytes long, and at most {most} are read")
        if inode.flags & (_ENCRYPTED | _COMPRESSED):
            raise self._damage(f"{path} is encrypted or compressed")
        if inode.flags & _INLINE:
            return (inode.blocks + self._inline_rest(inode))[: inode.size].ljust(inode.size, b"\0")
        size, block = inode.size, self._super.block_size
        wanted = -(-size // block)
        data = bytearray(wanted * block)
        runs = self._extents(inode, wanted) if inode.flags & _EXTENTS else self._indirect(inode, wanted)
        for run in runs:
            count = min(run.length, wanted - run.logical)
            if run.physical is not None and count > 0:
                self._block(run.physical + count - 1)
                at = run.logical * block
                data[at : at + count * block] = self._part.read(self._block(run.physical), count * block)
        return bytes(data[:size])

    def _inline_rest(self, inode: _Inode) -> bytes:
        """What of an inline file does not fit into the 60 bytes: the attribute system.data."""
        raw = Fields(inode.attributes)
        if len(raw.data) < 8 or raw.u32(0) != 0xEA020000:
            return b""
        at = 4
        while at + 16 <= len(raw.data) and raw.u32(at):
            length, space = raw.u8(at), raw.u8(at + 1)
            if space == 7 and raw.data[at + 16 : at + 16 + length] == b"data":
                start = 4 + raw.u16(at + 2)  # from behind the magic number
                return raw.data[start : start + raw.u32(at + 8)]
            at += 16 + (length + 3 & ~3)
        return b""

    def _extents(self, inode: _Inode, wanted: int) -> Iterator[_Run]:
        """The file's runs below block `wanted`, going up."""
        depth = Fields(inode.blocks).u16(6)
        if depth > _MAX_DEPTH:
            raise self._damage(f"inode {inode.number}: its tree of extents is too deep")
        reached = 0
        for run in self._extents_in(inode.blocks, depth, inode.number, range(wanted)):
            if run.logical < reached:
                raise self._damage(f"inode {inode.number}: its extents overlap")
            reached = run.logical + run.length
            yield run

    def _extents_in(self, node: bytes, depth: int, number: int, allowed: range) -> Iterator[_Run]:
        """The runs of a node, whose entries go up within `allowed`: so no block is looked at twice."""
        told = Fields(node)
        entries = told.u16(2)
        if told.u16(0) != _EXTENT_MAGIC or told.u16(6) != depth or entries > len(node) // 12 - 1:
            raise self._damage(f"inode {number}: its tree of extents is damaged")
        starts = [told.u32(at) for at in range(12, 12 + entries * 12, 12)]
        if any(one >= other for one, other in pairwise(starts)) or (starts and starts[0] < allowed.start):
            raise self._damage(f"inode {number}: its tree of extents is out of order")
        for slot, logical in enumerate(starts):
            if logical >= allowed.stop:
                return
            at = 12 + slot * 12
            if depth:
                block = self._block(told.u32(at + 4) | told.u16(at + 8) << 32)
                below = self._part.read(block, self._super.block_size)
                end = starts[slot + 1] if slot + 1 < entries else allowed.stop
                within = range(logical, min(end, allowed.stop))
                yield from self._extents_in(below, depth - 1, number, within)
                continue
            length, physical = told.u16(at + 4), told.u32(at + 8) | told.u16(at + 6) << 32
            if length > _UNWRITTEN:
                yield _Run(logical, length - _UNWRITTEN, None)
            else:
                yield _Run(logical, length, physical)

    def _indirect(self, inode: _Inode, wanted: int) -> Iterator[_Run]:
        """The same by lists of block numbers: twelve, and a tree of one, two and three levels."""
        told = Fields(inode.blocks)
        logical = 0
        for slot in range(15):
            level = max(0, slot - 11)
            yield from self._listed(told.u32(slot * 4), level, logical, wanted)
            logical += (self._super.block_size // 4) ** level
            if logical >= wanted:
                return

    def _listed(self, block: int, level: int, logical: int, wanted: int) -> Iterator[_Run]:
        if block == 0 or logical >= wanted:
            return
        if level == 0:
            yield _Run(logical, 1, block)
            return
        per_block = self._super.block_size // 4
        told = Fields(self._part.read(self._block(block), self._super.block_size))
        below = per_block ** (level - 1)
        for slot in range(min(per_block, -(-(wanted - logical) // below))):
            yield from self._listed(told.u32(slot * 4), level - 1, logical + slot * below, wanted)


def _components(path: str | bytes) -> list[bytes]:
    """A path's names, the last one first, so that they can be taken off at the end."""
    raw = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    return [name for name in reversed(raw.split(b"/")) if name not in (b"", b".")]


def _has_super(group: int) -> bool:
    """Whether a group has a copy of the superblock: 0, and powers of 3, 5 and 7."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False
