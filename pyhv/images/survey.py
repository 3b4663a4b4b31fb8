# SPDX-License-Identifier: GPL-2.0-only
"""What is on a disk, in words: partitions, file systems, what a boot loader would start, and if that boots.

Data as in `pyhv.loader.describe`: titles with rows of two texts. Nothing is raised for what is on the disk.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pyhv.errors import ImageError, VolumeError
from pyhv.frozen import frozen
from pyhv.images.unpacked import unpack_once
from pyhv.loader.accept import objections
from pyhv.loader.describe import Description, Rows, size_text
from pyhv.loader.elf import load_image
from pyhv.loader.packed import MAGIC_SIZE, sniff
from pyhv.volumes.bootconfig import GRUB2, BootConfig, BootEntry, find_configs
from pyhv.volumes.filesystem import Files, FileSystem, open_files, recognize
from pyhv.volumes.partitions import Partition, PartitionTable, read_table
from pyhv.volumes.window import Fields, Window

MAX_KERNEL: Final = 256 << 20
"""Bytes of a kernel that is looked at."""
MAX_KERNELS: Final = 8
"""Kernels of one file system that are looked at."""
_KERNEL_NAMES: Final = ("vmlinuz", "vmlinux", "gnumach")
_UNPACKED_BY_GRUB: Final = ("gzip", "xz", "lzo")
"""What PV-GRUB (2.06 and 2.12) unpacks of kernels."""
_UNREAD: Final = ("btrfs", "xfs", "LVM2 physical volume")
"""What PV-GRUB may find a kernel in, and pyhv does not look into."""
_SETUP_SECTORS_AT, _HDRS_AT, _VERSION_AT, _XLOADFLAGS_AT, _PAYLOAD_AT = 0x1F1, 0x202, 0x20E, 0x236, 0x248
_HEADER: Final = 0x250


@frozen
class FoundKernel:
    """A kernel in a file system: why it cannot boot, or nothing."""

    path: str
    told: str
    objections: tuple[str, ...] = ()
    suits_grub: bool = True
    """Whether PV-GRUB can unpack it."""


@dataclass(slots=True)
class Volume:
    """A partition, or all of the disk, and what is on it."""

    part: Window
    partition: Partition | None
    filesystem: FileSystem | None
    configs: list[BootConfig] = field(default_factory=list)
    kernels: dict[str, FoundKernel] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def device(self) -> str:
        """What Linux calls it."""
        return self.part.name


@dataclass(slots=True)
class Survey:
    """All of a disk."""

    size: int
    table: PartitionTable | None
    volumes: list[Volume]
    remarks: list[str]

    def first_entry(self) -> tuple[Volume, BootConfig, BootEntry] | None:
        """What PV-GRUB starts when nobody chooses: it looks for a grub.cfg, one device after the other."""
        for volume in self.volumes:
            for config in volume.configs:
                if config.kind == GRUB2 and config.default is not None:
                    return volume, config, config.entries[config.default]
        return None


def survey(disk: Window, device: str = "xvda", *, judging: bool = True) -> Survey:
    """Look at a disk that will be `device` for its guest. Raises only what reading the image raises.

    Without `judging` no kernel is unpacked, and `Volume.kernels` stays empty.
    """
    whole = recognize(disk)
    table: PartitionTable | None = None
    remarks = []
    if whole is None:
        try:
            table = read_table(disk)
        except VolumeError as cause:
            remarks.append(str(cause))
    volumes = []
    if table is not None:
        remarks += table.remarks
        for partition in table.partitions:
            part = disk.part(f"{device}{partition.number}", partition.start, partition.size)
            found = None if partition.container else recognize(part)
            volumes.append(_volume(part, partition, found, judging=judging))
    elif whole is not None:
        part = disk.part(device, 0, disk.size)
        volumes.append(_volume(part, None, whole, judging=judging))
    return Survey(disk.size, table, volumes, remarks)


def _volume(part: Window, partition: Partition | None, found: FileSystem | None, *, judging: bool) -> Volume:
    volume = Volume(part, partition, found)
    if found is None:
        return volume
    volume.remarks += found.remarks
    if found.kind.startswith(("ext", "vfat")):
        try:
            files = open_files(part)
        except VolumeError:
            return volume  # the file system's remarks say it
        volume.configs = find_configs(files)
        if not judging:
            return volume
        wanted = list(dict.fromkeys(_kernels_of(volume.configs, files)))
        volume.kernels = {path: _kernel(files, path) for path in wanted[:MAX_KERNELS]}
        if len(wanted) > MAX_KERNELS:
            volume.remarks.append(f"{len(wanted) - MAX_KERNELS} more kernels, not looked at")
    return volume


def _kernels_of(configs: list[BootConfig], files: Files) -> Iterator[str]:
    """Kernels that a configuration starts, the default one first, and those that lie where kernels do."""
    for config in configs:
        first = [] if config.default is None else [config.entries[config.default]]
        yield from (entry.kernel for entry in (*first, *config.entries) if "$" not in entry.kernel)
    for directory in ("/boot", "/"):
        try:
            names = files.names(directory)
        except VolumeError:
            continue
        yield from (f"{directory.rstrip('/')}/{name}" for name in names if name.startswith(_KERNEL_NAMES))


def _kernel(files: Files, path: str) -> FoundKernel:
    try:
        data = files.read_file(path, MAX_KERNEL)
    except VolumeError as cause:
        return FoundKernel(path, "", (str(cause),))
    try:
        image = load_image(data, path, bootable=False, unpacker=unpack_once)
    except ImageError as cause:
        return FoundKernel(path, size_text(len(data)), (str(cause).removeprefix(f"{path}: "),))
    told = f"{_version(data) or image.notes.guest_os or 'kernel'}, {image.kind}, {size_text(len(data))}"
    return FoundKernel(path, told, tuple(objections(image)), header_of(data).suits_grub)


@frozen
class KernelHeader:
    """What a kernel's first bytes say, unpacked as little as can be. `packed` None: it is not."""

    width: int
    """Bits, 32 or 64; 64 if they do not say."""
    packed: str | None

    @property
    def suits_grub(self) -> bool:
        """Whether PV-GRUB can unpack it."""
        return self.packed is None or self.packed in _UNPACKED_BY_GRUB


def header_of(data: bytes) -> KernelHeader:
    """Look at a kernel's first bytes (Linux' boot protocol, or ELF)."""
    if data[_HDRS_AT : _HDRS_AT + 4] != b"HdrS" or len(data) < _HEADER:
        return KernelHeader(32 if data[:5] == b"\x7fELF\x01" else 64, sniff(data))
    told = Fields(data)
    payload = ((told.u8(_SETUP_SECTORS_AT) or 4) + 1) * 512 + told.u32(_PAYLOAD_AT)
    width = 64 if told.u16(_XLOADFLAGS_AT) & 1 else 32
    return KernelHeader(width, sniff(data[payload : payload + MAGIC_SIZE]))


def _version(data: bytes) -> str:
    """What a bzImage calls itself, up to the first blank."""
    if data[_HDRS_AT : _HDRS_AT + 4] != b"HdrS":
        return ""
    at = 0x200 + int.from_bytes(data[_VERSION_AT : _VERSION_AT + 2], "little")
    text = data[at : at + 128].split(b"\0", 1)[0].decode("utf-8", "replace")
    return f"Linux {text.split(' ', 1)[0]}" if text else ""


# -- in words ---------------------------------------------------------------------------------------------


def describe_disk(found: Survey, name: str, kind: str) -> Description:
    """The same for a person; `kind` is the format of the image."""
    rows: Rows = [("file", name), ("format", kind), ("size", size_text(found.size))]
    rows += [("note", remark) for remark in found.remarks]
    sections: Description = [("Disk", rows)]
    if found.table is not None:
        sections.append((f"Partitions ({found.table.kind})", [_partition_row(one) for one in found.volumes]))
    with_systems = [one for one in found.volumes if one.filesystem is not None]
    sections.append(
        (
            "File systems",
            [row for one in with_systems for row in _system_rows(one)] or [("none", "none that is known")],
        )
    )
    for volume in with_systems:
        for config in volume.configs:
            sections.append((f"{config.kind}: {volume.device}:{config.path}", _config_rows(config)))
        if volume.kernels:
            kernels = [_kernel_row(kernel) for kernel in volume.kernels.values()]
            sections.append((f"Kernels on {volume.device}", kernels))
    sections.append(("Can it boot?", _verdict(found)))
    return sections


def _partition_row(volume: Volume) -> tuple[str, str]:
    one = volume.partition
    assert one is not None
    words = [one.kind, size_text(one.size), f"at {one.start // 512} sectors"]
    words += [f"named {one.name!r}"] if one.name else []
    words += [f"PARTUUID {one.uuid}"] if one.uuid else []
    return volume.device, ", ".join([*words, *(["bootable"] if one.bootable else [])])


def _system_rows(volume: Volume) -> Rows:
    one = volume.filesystem
    assert one is not None
    words = [one.kind]
    words += [f"label {one.label!r}"] if one.label else []
    words += [f"UUID {one.uuid}"] if one.uuid else []
    words += [size_text(one.size)] if one.size else []
    words += [f"blocks of {one.block}"] if one.block else []
    rows = [(volume.device, ", ".join(words))]
    if one.features:
        rows.append(("features", " ".join(one.features)))
    return rows + [("note", remark) for remark in volume.remarks]


def _config_rows(config: BootConfig) -> Rows:
    rows: Rows = []
    for number, entry in enumerate(config.entries):
        rows.append(("default" if number == config.default else str(number), entry.title))
        rows.append(("kernel", f"{entry.kernel} {entry.command_line}".rstrip()))
        if entry.ramdisk:
            rows.append(("ramdisk", entry.ramdisk))
    return rows or [("entries", "none with a kernel")]


def _kernel_row(kernel: FoundKernel) -> tuple[str, str]:
    if not kernel.objections:
        return kernel.path, f"{kernel.told}: boots"
    return kernel.path, f"{kernel.told + ': ' if kernel.told else ''}does not boot: {kernel.objections[0]}"


def _verdict(found: Survey) -> Rows:
    first = found.first_entry()
    if first is None:
        return _without_entry(found)
    volume, config, entry = first
    kernel = volume.kernels.get(entry.kernel)
    if kernel is None:
        where = f"{volume.device}:{config.path} starts {entry.kernel}"
        return [("perhaps", f"{where}, and what that is only GRUB can tell")]
    if kernel.objections:
        return [("no", f"{entry.kernel}, which {config.path} starts: {kernel.objections[0]}")]
    started = f"{entry.title!r} of {volume.device}:{config.path}"
    if not kernel.suits_grub:
        return [("yes", f"pyhv starts {started}, as pygrub does; PV-GRUB cannot unpack that kernel")]
    return [("yes", f"by PV-GRUB, which starts {started}")]


def _without_entry(found: Survey) -> Rows:
    unread = [one for one in found.volumes if one.filesystem and one.filesystem.kind.startswith(_UNREAD)]
    if unread:
        kinds = ", ".join(f"{one.filesystem.kind} on {one.device}" for one in unread if one.filesystem)
        return [("perhaps", f"PV-GRUB looks into {kinds} for a grub.cfg, pyhv does not")]
    instead = "; boot a kernel of your own with it: --kernel VMLINUZ --ramdisk INITRD --append root=..."
    others = [f"{one.device}:{config.path}" for one in found.volumes for config in one.configs]
    if others:
        told = f"PV-GRUB reads /boot/grub/grub.cfg with an entry; here is only {', '.join(others)}"
        return [("no", told + instead)]
    return [("no", f"there is no /boot/grub/grub.cfg on it that names a kernel{instead}")]
