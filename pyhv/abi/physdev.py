# SPDX-License-Identifier: GPL-2.0-only
"""Argument structures of physdev_op, as the public header `physdev.h` lays them out.

Most are only read, to refuse a domain without devices what is for others; their sizes say what must be
readable.
"""

from pyhv.abi.layout import AbiStruct, physdev_union, pointer, s32, u8, u16, u32, u64, ulong


class PhysdevSetIopl(AbiStruct):
    """`physdev_set_iopl`."""

    iopl: u32


class PhysdevSetIobitmap(AbiStruct):
    """`physdev_set_iobitmap`."""

    bitmap: pointer
    nr_ports: u32


class PhysdevIrq(AbiStruct):
    """`physdev_irq`, `physdev_irq_status_query`: an interrupt, and its vector or flags."""

    irq: u32
    vector: u32


class PhysdevEoi(AbiStruct):
    """`physdev_eoi`."""

    irq: u32


class PhysdevApic(AbiStruct):
    """`physdev_apic`: an I/O APIC by its physical address, a register and its value."""

    apic_physbase: ulong
    reg: u32
    value: u32


class PhysdevMapPirq(AbiStruct):
    """`physdev_map_pirq`."""

    domid: u16
    type: s32
    index: s32
    pirq: s32
    bus: s32
    devfn: s32
    entry_nr: s32
    table_base: u64


class PhysdevUnmapPirq(AbiStruct):
    """`physdev_unmap_pirq`."""

    domid: u16
    pirq: s32


class PhysdevSetupGsi(AbiStruct):
    """`physdev_setup_gsi`."""

    gsi: s32
    triggering: u8
    polarity: u8


class PhysdevManagePci(AbiStruct):
    """`physdev_manage_pci`, `physdev_restore_msi`: a device of PCI segment 0."""

    bus: u8
    devfn: u8


class PhysdevManagePciExt(AbiStruct):
    """`physdev_manage_pci_ext`."""

    bus: u8
    devfn: u8
    is_extfn: u32
    is_virtfn: u32
    physfn_bus: u8
    physfn_devfn: u8


class PhysdevPciDeviceAdd(AbiStruct):
    """`physdev_pci_device_add`, without the options that may follow."""

    seg: u16
    bus: u8
    devfn: u8
    flags: u32
    physfn_bus: u8
    physfn_devfn: u8


class PhysdevPciDevice(AbiStruct):
    """`physdev_pci_device`."""

    seg: u16
    bus: u8
    devfn: u8


class PhysdevOp(AbiStruct):
    """`physdev_op`: the old hypercall's form, a command and its structure."""

    cmd: u32
    u: physdev_union
