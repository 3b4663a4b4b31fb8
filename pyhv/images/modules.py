# SPDX-License-Identifier: GPL-2.0-only
"""Drivers for the busybox guest that has a disk or a network: modules of Debian's kernel, in an archive that
is put behind its initramfs.

Linux unpacks one archive after the other, so that a guest without devices has none of this. /init loads what
`modules/order` lists, each after what it depends on, as the modules themselves say (`depends=` in .modinfo).
"""

import hashlib
import io
import lzma
import re
import tempfile
from pathlib import Path
from typing import Final

from elftools.elf.elffile import ELFFile

from pyhv.cache import store_whole
from pyhv.errors import EnvironmentProblem
from pyhv.images import archive
from pyhv.images.debian import DebianFiles
from pyhv.images.progress import Progress
from pyhv.loader.cpio import CpioWriter

DHCP: Final = """\
#!/bin/sh
# What udhcpc does with an address that it has got: see its --help.
case "$1" in
    bound | renew)
        ip addr flush dev "$interface"
        ip addr add "$ip/$mask" dev "$interface"
        [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
        for one in $router; do
            ip route replace default via "$one" dev "$interface"
        done
        : >/etc/resolv.conf
        for one in $dns; do
            echo "nameserver $one" >>/etc/resolv.conf
        done
        ;;
esac
"""
WANTED: Final = (
    "xen-blkfront", "xen-netfront", "af_packet", "9pnet_xen", "9p", "crc32c_generic", "ext4", "isofs", "vfat",
    "nls_ascii", "nls_cp437", "nls_utf8",
)  # fmt: skip
"""Drivers of Xen's devices, and file systems that are to be found on them."""
_MODULE: Final = re.compile(r".*/kernel/.*/(?P<name>[^/]+)\.ko(?P<packed>\.xz)?")


def ensure(files: DebianFiles, progress: Progress, *, suite: str | None = None) -> Path:
    """The archive for a kernel that `debian.ensure` has found, fetched if it must be. EnvironmentProblem."""
    target = files.vmlinuz.parent / f"modules-{_recipe()}.cpio"
    if not target.is_file():
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as name:
            scratch = Path(name)
            scratch.chmod(0o755)  # apt, if run by root, downloads as its own user
            with archive.open_archive(suite, scratch, progress) as packages:
                package = f"linux-image-{files.version}"
                progress.step(f"downloading {package} for its drivers")
                packages.download([f"{package}:amd64"], scratch, progress)
            found = _modules(archive.only_package(scratch, "linux-"))
        store_whole(target, build(found))
    return target


def _modules(package: Path) -> dict[str, bytes]:
    """All modules of a package by name, unpacked when they are asked for."""
    found = {}
    for path, data in archive.members(package, _MODULE):
        match = _MODULE.fullmatch(path)
        assert match is not None
        found[match["name"].replace("-", "_")] = lzma.decompress(data) if match["packed"] else data
    return found


def build(modules: dict[str, bytes], wanted: tuple[str, ...] = WANTED) -> bytes:
    """The archive with these modules and what they need. EnvironmentProblem: one is not there."""
    order: list[str] = []

    def add(name: str, needed_by: str) -> None:
        if name in order:
            return
        if name not in modules:
            raise EnvironmentProblem(f"Debian's kernel has no module {name}, which {needed_by} needs")
        for other in depends(modules[name]):
            add(other.replace("-", "_"), name)
        order.append(name)

    for each in wanted:
        name = each.replace("-", "_")
        if name in modules:  # else it is built into this kernel, or it has none
            add(name, "the guest")
    writer = CpioWriter()
    for name in order:
        writer.file(f"modules/{name}.ko", modules[name])
    writer.file("modules/order", "".join(f"{name}\n" for name in order).encode())
    for directory in ("etc", "etc/udhcpc"):
        writer.directory(directory)
    writer.file("etc/udhcpc/default.script", DHCP.encode(), 0o755)
    return writer.finish()


def depends(module: bytes) -> list[str]:
    """The modules that one says it needs."""
    section = ELFFile(io.BytesIO(module)).get_section_by_name(".modinfo")
    words = [] if section is None else section.data().split(b"\0")
    said = next((word.removeprefix(b"depends=") for word in words if word.startswith(b"depends=")), b"")
    return [name for name in said.decode("ascii", "replace").split(",") if name]


def _recipe() -> str:
    return hashlib.blake2b("\0".join((*WANTED, DHCP, "1")).encode(), digest_size=4).hexdigest()
