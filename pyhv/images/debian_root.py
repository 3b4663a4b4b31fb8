# SPDX-License-Identifier: GPL-2.0-only
"""The files that make a Debian system one that boots as a Xen PV guest from its own disk.

    /boot/grub/grub.cfg           what PV-GRUB, or pygrub, starts: /vmlinuz and /initrd.img, which the
                                  kernel's package keeps pointing to the newest
    /etc/fstab                    the root by its UUID, so that it may be any disk
    /etc/systemd/network/         every Ethernet interface asks by DHCP
    /etc/initramfs-tools/         an initramfs for Xen's devices alone, of a fifth of the size
    /etc/ssh/, ssh.service.d/     a host key is made at the first start: none is in the image

A login prompt on hvc0 needs no file: systemd offers one on the console that the kernel's command line names.
"""

import io
import tarfile
from typing import Final

from pyhv.frozen import frozen

PACKAGES: Final = (
    "ca-certificates", "dbus", "initramfs-tools", "libpam-systemd", "openssh-server", "systemd-resolved",
    "zstd",
)  # fmt: skip
"""What is installed besides Debian's usual packages and a kernel."""
COMMAND_LINE: Final = "console=hvc0 net.ifnames=0 quiet"
ENABLED: Final = ("systemd-networkd.service", "systemd-resolved.service")
DISABLED: Final = ("networking.service", "e2scrub_reap.service", "e2scrub_all.timer")
"""networkd takes the place of ifupdown; e2scrub is for LVM, which there is none of."""

_GRUB: Final = """\
# Read by PV-GRUB and by pygrub.
set default=0
set timeout=0

menuentry 'Debian GNU/Linux' {{
	linux /vmlinuz root=UUID={uuid} ro {command_line}
	initrd /initrd.img
}}
"""
_FSTAB: Final = "UUID={uuid} / ext4 errors=remount-ro 0 1\n"
_HOSTS: Final = """\
127.0.0.1	localhost
127.0.1.1	{hostname}
::1	localhost ip6-localhost ip6-loopback
"""
_NETWORK: Final = """\
[Match]
Type=ether

[Network]
DHCP=yes
"""
_WAIT: Final = """\
# A guest without a network is not to wait for one.
[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=20
"""
_HOST_KEY: Final = """\
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'test -s /etc/ssh/ssh_host_ed25519_key || ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key'
ExecStartPre=/usr/sbin/sshd -t
"""  # noqa: E501 - one command
_SSHD: Final = "HostKey /etc/ssh/ssh_host_ed25519_key\n"
_INITRAMFS: Final = """\
# What a Xen guest needs to find its disks; MODULES=most is for all hardware.
MODULES=list
COMPRESS=zstd
"""
_MODULES_HOOK: Final = """\
#!/bin/sh
case "$1" in prereqs) exit 0;; esac
. /usr/share/initramfs-tools/hook-functions
manual_add_modules xen-blkfront xen-netfront ext4 crc32c btrfs xfs vfat
"""
HOOK_PATH: Final = "etc/initramfs-tools/hooks/pyhv-disks"


@frozen
class RootFile:
    """A file, a directory (`content` None) or a link (`target`) of the system."""

    path: str
    content: str | None = None
    mode: int = 0o644
    target: str = ""


def before_packages() -> list[RootFile]:
    """What has to be there before a kernel is installed: its package makes the initramfs."""
    return [
        RootFile("etc/initramfs-tools/conf.d/pyhv", _INITRAMFS),
        RootFile(HOOK_PATH, _MODULES_HOOK, 0o755),
    ]


def after_packages(hostname: str, uuid: str, ssh_key: str | None) -> list[RootFile]:
    """What replaces or completes what packages bring."""
    files = [
        RootFile("boot/grub/grub.cfg", _GRUB.format(uuid=uuid, command_line=COMMAND_LINE)),
        RootFile("etc/fstab", _FSTAB.format(uuid=uuid)),
        RootFile("etc/hostname", f"{hostname}\n"),
        RootFile("etc/hosts", _HOSTS.format(hostname=hostname)),
        RootFile("etc/machine-id", "", 0o444),
        RootFile("etc/resolv.conf", target="../run/systemd/resolve/stub-resolv.conf"),
        RootFile("etc/systemd/network/80-ethernet.network", _NETWORK),
        RootFile("etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf", _WAIT),
        RootFile("etc/systemd/system/ssh.service.d/host-key.conf", _HOST_KEY),
        RootFile("etc/ssh/sshd_config.d/host-key.conf", _SSHD),
    ]
    if ssh_key is not None:
        files += [
            RootFile("root/.ssh", mode=0o700),
            RootFile("root/.ssh/authorized_keys", ssh_key, 0o600),
        ]
    return files


def archive_of(files: list[RootFile], born: int) -> bytes:
    """The files as a tar archive, root's, the same bytes each time. Their directories are not in it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for file in files:
            entry = tarfile.TarInfo(f"./{file.path}")
            entry.mode, entry.mtime, entry.uname, entry.gname = file.mode, born, "root", "root"
            if file.target:
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, file.target, 0o777
                archive.addfile(entry)
            elif file.content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                data = file.content.encode()
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()
