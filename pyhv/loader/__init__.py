# SPDX-License-Identifier: GPL-2.0-only
"""Kernel images for PV domains: reading them, deciding whether they can boot, placing and writing them.

`elf.load_image` reads a file, `layout.plan` decides where everything goes, `builder.build` writes it into
a domain's memory, `describe.describe` tells a person about it. `ramdisk.prepare` unpacks a ramdisk,
`cpio.CpioWriter` makes an initramfs.
"""
