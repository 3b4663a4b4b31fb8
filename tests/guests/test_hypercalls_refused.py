# SPDX-License-Identifier: GPL-2.0-only
"""What a plain domain is refused, and what no domain can do: every number in every register."""

import struct

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, Physdev
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.testing.guest_machine import UNMAPPED, Paused

DOMCTL_CREATE, DOMCTL_DESTROY, DOMCTL_GETINFO = 1, 2, 5
SYSCTL_VERSION, DOMCTL_VERSION, PLATFORM_VERSION = 0x15, 0x15, 0x03000001


@pytest.mark.parametrize(
    ("number", "errno"),
    [
        (Hypercall.XSM_OP, Errno.ENOSYS),
        (Hypercall.XENOPROF_OP, Errno.ENOSYS),
        (Hypercall.HVM_OP, Errno.ENOSYS),
        (Hypercall.KEXEC_OP, Errno.EPERM),
        (Hypercall.TMEM_OP, Errno.ENOSYS),
        (Hypercall.ARGO_OP, Errno.ENOSYS),
        (Hypercall.XENPMU_OP, Errno.EOPNOTSUPP),
        (Hypercall.DM_OP, Errno.ENOSYS),
        (Hypercall.HYPFS_OP, Errno.EPERM),
        (Hypercall.MCA, Errno.EPERM),
    ],
)
def test_refused_calls(guest: Paused, number: Hypercall, errno: Errno) -> None:
    assert guest.call(number, 0, guest.scratch) == -errno
    assert guest.call(number, -1, UNMAPPED, -1, -1, -1) == -errno


@pytest.mark.parametrize(
    ("number", "words", "errno"),
    [
        (Hypercall.PLATFORM_OP, (PLATFORM_VERSION, 9), Errno.EACCES),
        (Hypercall.PLATFORM_OP, (9, PLATFORM_VERSION - 1), Errno.EACCES),
        (Hypercall.PLATFORM_OP, (9, PLATFORM_VERSION), Errno.EPERM),
        (Hypercall.SYSCTL, (SYSCTL_VERSION, 1), Errno.EACCES),
        (Hypercall.SYSCTL, (1, SYSCTL_VERSION - 1), Errno.EACCES),
        (Hypercall.SYSCTL, (1, SYSCTL_VERSION + 1), Errno.EACCES),
        (Hypercall.SYSCTL, (1, SYSCTL_VERSION), Errno.EPERM),
        (Hypercall.DOMCTL, (DOMCTL_VERSION, DOMCTL_DESTROY, 1), Errno.EACCES),
        (Hypercall.DOMCTL, (DOMCTL_DESTROY, DOMCTL_VERSION + 1, 1), Errno.EACCES),
        (Hypercall.DOMCTL, (DOMCTL_DESTROY, DOMCTL_VERSION, 1), Errno.EPERM),
        (Hypercall.DOMCTL, (DOMCTL_DESTROY, DOMCTL_VERSION, 0), Errno.EPERM),
        (Hypercall.DOMCTL, (DOMCTL_DESTROY, DOMCTL_VERSION, 77), Errno.ESRCH),
        (Hypercall.DOMCTL, (DOMCTL_DESTROY, DOMCTL_VERSION, DOMID_SELF), Errno.ESRCH),
        (Hypercall.DOMCTL, (DOMCTL_CREATE, DOMCTL_VERSION, 77), Errno.EPERM),
        (Hypercall.DOMCTL, (DOMCTL_GETINFO, DOMCTL_VERSION, 77), Errno.EPERM),
    ],
)
def test_control_calls_look_at_the_version_first(
    guest: Paused, number: Hypercall, words: tuple[int, ...], errno: Errno
) -> None:
    assert guest.call(number, guest.put(struct.pack(f"<{len(words)}I", *words).ljust(144, b"\0"))) == -errno
    assert guest.call(number, UNMAPPED) == -Errno.EFAULT


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (Physdev.IRQ_STATUS_QUERY, Errno.EINVAL),
        (Physdev.APIC_READ, Errno.EPERM),
        (Physdev.APIC_WRITE, Errno.EPERM),
        (Physdev.ALLOC_IRQ_VECTOR, Errno.EPERM),
        (Physdev.EOI, Errno.EINVAL),
        (Physdev.MAP_PIRQ, Errno.EPERM),
        (Physdev.UNMAP_PIRQ, Errno.EPERM),
        (Physdev.MANAGE_PCI_ADD, Errno.EPERM),
        (Physdev.MANAGE_PCI_REMOVE, Errno.EPERM),
        (Physdev.RESTORE_MSI, Errno.ENODEV),
        (Physdev.MANAGE_PCI_ADD_EXT, Errno.EPERM),
        (Physdev.SETUP_GSI, Errno.EPERM),
        (Physdev.PCI_DEVICE_ADD, Errno.EPERM),
        (Physdev.PCI_DEVICE_REMOVE, Errno.EPERM),
        (Physdev.RESTORE_MSI_EXT, Errno.ENODEV),
        (Physdev.PREPARE_MSIX, Errno.EPERM),
        (Physdev.RELEASE_MSIX, Errno.EPERM),
    ],
)
def test_physical_devices_are_others(guest: Paused, command: Physdev, errno: Errno) -> None:
    at = guest.put(struct.pack("<H", DOMID_SELF).ljust(64, b"\0"))
    assert guest.physdev_op(command, at) == -errno
    assert guest.physdev_op(command, UNMAPPED) == -Errno.EFAULT, "its structure is read first"
    if command in (Physdev.MAP_PIRQ, Physdev.UNMAP_PIRQ):
        assert guest.physdev_op(command, guest.put(struct.pack("<H", 77))) == -Errno.ESRCH


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (Physdev.IRQ_UNMASK_NOTIFY, 0), (Physdev.PCI_MMCFG_RESERVED, -Errno.EPERM),
        *((command, -Errno.ENOSYS) for command in (0, 17, 23, 28, 32)),
    ],
)  # fmt: skip
def test_physical_devices_whose_structure_is_not_read(guest: Paused, command: int, result: int) -> None:
    assert guest.physdev_op(command, guest.scratch) == result
    assert guest.physdev_op(command, UNMAPPED) == result


@pytest.mark.parametrize("number", [11, 43, 47, 49, 55, 63, 64, 1000, 0xFFFFFFFF])
def test_numbers_that_do_not_exist(guest: Paused, number: int) -> None:
    assert guest.hypercall(number) == (1 << 64) - Errno.ENOSYS


def test_console_io(guest: Paused) -> None:
    write, read = 0, 1
    heard: list[bytes] = []
    guest.machine.services.debug_sink = lambda _domain, text: heard.append(text)
    assert guest.console_io(write, 5, guest.put(b"hello")) == 0
    assert b"".join(heard) == b"hello"
    assert guest.console_io(write, 5, UNMAPPED) == -Errno.EFAULT
    assert guest.console_io(read, 5, guest.scratch) == -Errno.EPERM
    assert guest.console_io(2, 0, 0) == -Errno.EPERM


LEAVING = {Hypercall.IRET, Hypercall.SCHED_OP, Hypercall.SCHED_OP_COMPAT}
"""These leave the processor; they have tests of their own."""
COUNTS = {
    Hypercall.MMU_UPDATE: 1,
    Hypercall.MULTICALL: 1,
    Hypercall.CONSOLE_IO: 1,
    Hypercall.GRANT_TABLE_OP: 2,
    Hypercall.MMUEXT_OP: 1,
}
"""Which argument is the length of a list; long lists are merely slow."""


@pytest.mark.promise("I-12")
@pytest.mark.parametrize(
    "number",
    [entry.number for entry in HYPERCALLS if entry is not None and entry.number not in LEAVING],
    ids=lambda number: number.name.lower(),
)
def test_no_number_in_any_register_raises_anything(guest: Paused, number: Hypercall) -> None:
    """Hostile values in every argument give an errno, a result, or the end of the domain."""
    hostile = [0, 1, 3, 6, 9, 13, 63, 1 << 31, (1 << 32) - 1, UNMAPPED, 1 << 47, 1 << 63, (1 << 64) - 1]
    hostile += [
        guest.scratch,
        guest.vcpu.paging.kernel_l4,
        0xFFFF800000000000,
        (1 << 64) - 8,
        guest.page(16) - 1,
    ]
    for first in hostile:
        for second in hostile:
            for rest in (0, 1, (1 << 64) - 1, guest.scratch):
                arguments = (first, second, rest, rest, rest)
                if number in COUNTS and arguments[COUNTS[number]] & 0xFFFFFFFF > 100:
                    continue
                assert -200 < guest.call(number, *arguments) < 1 << 64
