# SPDX-License-Identifier: GPL-2.0-only
"""Boot configurations as boot loaders' own tools write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.volumes.bootconfig import EXTLINUX, GRUB2, LEGACY, BootConfig, BootEntry, parse_config

GRUB_CFG = """\
# made by grub-mkconfig
set default="0"
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
fi
function load_video { insmod all_video; }
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
\tload_video
\tset root='hd0,msdos1'
\techo\t'Loading Linux 6.1.0-56-amd64 ...'
\tlinux\t/boot/vmlinuz-6.1.0-56-amd64 root=UUID=6f1d ro  quiet
\techo\t'Loading initial ramdisk ...'
\tinitrd\t/boot/initrd.img-6.1.0-56-amd64
}
submenu 'Advanced options' $menuentry_id_option 'gnulinux-advanced' {
\tmenuentry "Debian, with Linux 6.1.0-55" {
\t\tlinux ($root)/vmlinuz-6.1.0-55 root=/dev/xvda1 init="/bin/a b"
\t}
}
menuentry 'UEFI Firmware Settings' {
\tfwsetup
}
"""

MENU_LST = """\
default 1
timeout=5
title Memory test
root (hd0,0)
title Debian
root (hd0,0)
kernel (hd0,0)/boot/vmlinuz root=/dev/xvda1 ro
initrd /boot/initrd.img
title Xen
kernel /xen.gz dom0_mem=1G
module /vmlinuz root=/dev/xvda2
module /initrd
"""

EXTLINUX_CONF = """\
DEFAULT linux-old
TIMEOUT 30
LABEL linux
  MENU LABEL Linux
  KERNEL ../vmlinuz
  APPEND root=/dev/xvda1 ro
  INITRD /initrd.img
LABEL linux-old
  LINUX /vmlinuz.old
  APPEND initrd=/initrd.old quiet
"""


def test_grub2() -> None:
    found = parse_config(GRUB_CFG.encode(), "/boot/grub/grub.cfg", GRUB2)
    assert found == BootConfig(
        "/boot/grub/grub.cfg",
        GRUB2,
        (
            BootEntry(
                "Debian GNU/Linux",
                "/boot/vmlinuz-6.1.0-56-amd64",
                "/boot/initrd.img-6.1.0-56-amd64",
                "root=UUID=6f1d ro quiet",
            ),
            BootEntry(
                "Debian, with Linux 6.1.0-55", "/vmlinuz-6.1.0-55", "", "root=/dev/xvda1 init=/bin/a b"
            ),
        ),
        0,
    )


def test_grub_legacy() -> None:
    found = parse_config(MENU_LST.encode(), "/boot/grub/menu.lst", LEGACY)
    assert [(entry.title, entry.kernel, entry.ramdisk) for entry in found.entries] == [
        ("Debian", "/boot/vmlinuz", "/boot/initrd.img"),
        ("Xen", "/vmlinuz", "/initrd"),
    ]
    assert found.default == 0
    assert found.entries[0].command_line == "root=/dev/xvda1 ro"


def test_extlinux() -> None:
    found = parse_config(EXTLINUX_CONF.encode(), "/extlinux.conf", EXTLINUX)
    assert [(entry.title, entry.kernel) for entry in found.entries] == [
        ("linux", "/../vmlinuz"),
        ("linux-old", "/vmlinuz.old"),
    ]
    assert found.default == 1
    assert [entry.command_line for entry in found.entries] == ["root=/dev/xvda1 ro", "quiet"]
    assert [entry.ramdisk for entry in found.entries] == ["/initrd.img", "/initrd.old"]


@pytest.mark.parametrize(
    ("default", "chosen"),
    [("b", 1), ("1", 1), ("0>b", 1), ("9", 0), ("no such", 0), ("saved", 0), ("-1", 0), ("\u00b2", 0)],
)
def test_the_default_by_number_or_title(default: str, chosen: int) -> None:
    text = f"set default='{default}'\nmenuentry a {{\nlinux /a\n}}\nmenuentry b {{\nlinux /b\n}}\n"
    assert parse_config(text.encode(), "/grub.cfg", GRUB2).default == chosen


def test_without_entries_there_is_no_default() -> None:
    assert parse_config(b"menuentry x {\n}\n", "/grub.cfg", GRUB2).default is None


@pytest.mark.parametrize("kind", [GRUB2, LEGACY, EXTLINUX])
def test_any_bytes_are_read(kind: str) -> None:
    words = st.sampled_from(
        ["menuentry", "title", "label", "set default=", "linux", "kernel", "initrd", "module", "append",
         "default", "(", ")", "'", '"', "\\", "{", "}", "\n", "\t", " ", "/", "$x"]
    )  # fmt: skip

    @given(st.lists(words | st.text(max_size=3)))
    def check(parts: list[str]) -> None:
        found = parse_config("".join(parts).encode("utf-8", "replace"), "/x", kind)
        assert found.default is None or 0 <= found.default < len(found.entries)
        assert all(entry.kernel for entry in found.entries)

    check()
