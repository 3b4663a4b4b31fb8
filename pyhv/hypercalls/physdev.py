# SPDX-License-Identifier: GPL-2.0-only
"""physdev_op (public header `physdev.h`): I/O privilege, and what a domU without devices is told.

Devices and their interrupts belong to others: the commands about them are refused after their structure has
been read, as on Xen; a machine without devices has none to restore. The pages of interrupt
acknowledgements (pirq_eoi_gmfn) are not offered.
"""

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, Physdev
from pyhv.abi.physdev import (
    PhysdevApic,
    PhysdevEoi,
    PhysdevIrq,
    PhysdevManagePci,
    PhysdevManagePciExt,
    PhysdevMapPirq,
    PhysdevOp,
    PhysdevPciDevice,
    PhysdevPciDeviceAdd,
    PhysdevSetIobitmap,
    PhysdevSetIopl,
    PhysdevSetupGsi,
    PhysdevUnmapPirq,
)
from pyhv.address import guest_may_use
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.memory import check_domain
from pyhv.hypercalls.signature import Ptr, u32
from pyhv.hypercalls.table import Commands, Status, hypercall

_commands = Commands[[int], int](Hypercall.PHYSDEV_OP, Physdev)


@hypercall(Hypercall.PHYSDEV_OP)
def physdev_op(call: Call, command: u32, argument: Ptr) -> int:
    """Set the virtual IOPL and the I/O bitmap, and be told that there are no devices.

    ENOSYS: no such command; EFAULT: its structure cannot be read.
    """
    return _commands[command](call, argument)


@hypercall(Hypercall.PHYSDEV_OP_COMPAT)
def physdev_op_compat(call: Call, operation: Ptr) -> int:
    """The old form of `physdev_op`: command and arguments in one structure (`PhysdevOp`). EFAULT."""
    command = call.read(PhysdevOp, operation).cmd
    return physdev_op(call, command, operation + PhysdevOp.layout(call.width).offsets["u"])


@_commands.command(Physdev.SET_IOPL, PhysdevSetIopl)
def set_iopl(call: Call, argument: int) -> int:
    """Set the vCPU's virtual IOPL: up to which ring its code may use ports.

    EINVAL: above 3.
    """
    iopl = call.read(PhysdevSetIopl, argument).iopl
    if iopl > 3:
        raise XenError(Errno.EINVAL, f"IOPL {iopl}")
    call.vcpu.ports.iopl = iopl
    return 0


@_commands.command(Physdev.SET_IOBITMAP, PhysdevSetIobitmap)
def set_iobitmap(call: Call, argument: int) -> int:
    """Say where the vCPU's bitmap of forbidden ports is, to be read at each access that the IOPL forbids.

    EINVAL: more than 65536 ports, or an address outside the guest's space.
    """
    request = call.read(PhysdevSetIobitmap, argument)
    if request.nr_ports > 65536 or not guest_may_use(request.bitmap, call.width):
        raise XenError(Errno.EINVAL, f"I/O bitmap of {request.nr_ports} ports at {request.bitmap:#x}")
    call.vcpu.ports.bitmap, call.vcpu.ports.bitmap_ports = request.bitmap, request.nr_ports
    return 0


@_commands.command(Physdev.IRQ_UNMASK_NOTIFY)
def irq_unmask_notify(_call: Call, _argument: int) -> int:
    """Nothing: there is no interrupt to unmask. The argument is not read."""
    return 0


@_commands.command(Physdev.MAP_PIRQ, PhysdevMapPirq, Status.REFUSED)
def map_pirq(call: Call, argument: int) -> int:
    """Give a domain an interrupt.

    ESRCH: no such domain; EPERM.
    """
    check_domain(call, call.read(PhysdevMapPirq, argument).domid)
    raise XenError(Errno.EPERM, "map_pirq is for a domain with devices")


@_commands.command(Physdev.UNMAP_PIRQ, PhysdevUnmapPirq, Status.REFUSED)
def unmap_pirq(call: Call, argument: int) -> int:
    """Take an interrupt from a domain.

    ESRCH: no such domain; EPERM.
    """
    check_domain(call, call.read(PhysdevUnmapPirq, argument).domid)
    raise XenError(Errno.EPERM, "unmap_pirq is for a domain with devices")


_commands.refuse(Physdev.IRQ_STATUS_QUERY, Errno.EINVAL, "Ask how an interrupt ends.", PhysdevIrq)
_commands.refuse(Physdev.EOI, Errno.EINVAL, "End an interrupt.", PhysdevEoi)
_commands.refuse(Physdev.APIC_READ, Errno.EPERM, "Read a register of an I/O APIC.", PhysdevApic)
_commands.refuse(Physdev.APIC_WRITE, Errno.EPERM, "Write a register of an I/O APIC.", PhysdevApic)
_commands.refuse(Physdev.ALLOC_IRQ_VECTOR, Errno.EPERM, "Get an interrupt's vector.", PhysdevIrq)
_commands.refuse(Physdev.MANAGE_PCI_ADD, Errno.EPERM, "Announce a PCI device.", PhysdevManagePci)
_commands.refuse(Physdev.MANAGE_PCI_REMOVE, Errno.EPERM, "Take a PCI device away.", PhysdevManagePci)
_commands.refuse(
    Physdev.MANAGE_PCI_ADD_EXT, Errno.EPERM, "Announce a function of a PCI device.", PhysdevManagePciExt
)
_commands.refuse(Physdev.RESTORE_MSI, Errno.ENODEV, "Restore a device's interrupts.", PhysdevManagePci)
_commands.refuse(Physdev.SETUP_GSI, Errno.EPERM, "Set how an interrupt is triggered.", PhysdevSetupGsi)
_commands.refuse(Physdev.PCI_DEVICE_ADD, Errno.EPERM, "Announce a PCI device.", PhysdevPciDeviceAdd)
_commands.refuse(Physdev.PCI_DEVICE_REMOVE, Errno.EPERM, "Take a PCI device away.", PhysdevPciDevice)
_commands.refuse(Physdev.RESTORE_MSI_EXT, Errno.ENODEV, "Restore a device's interrupts.", PhysdevPciDevice)
_commands.refuse(Physdev.PREPARE_MSIX, Errno.EPERM, "Set a device's table up.", PhysdevPciDevice)
_commands.refuse(Physdev.RELEASE_MSIX, Errno.EPERM, "Give a device's table up.", PhysdevPciDevice)
_commands.refuse(Physdev.PCI_MMCFG_RESERVED, Errno.EPERM, "Announce the PCI configuration space.")
