# SPDX-License-Identifier: GPL-2.0-only
"""physdev_op (public header `physdev.h`): I/O privilege, and what a domU without devices is told.

Devices and their interrupts belong to others: the commands about them are refused after their structure has
been read, as on Xen; a machine without devices has none to restore. The pages of interrupt
acknowledgements (pirq_eoi_gmfn) are not offered.
"""

from pyhv.abi.errno import Errno
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import Physdev
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
from pyhv.hypercalls.memory import existing
from pyhv.hypercalls.table import Commands, Status, hypercall

_commands = Commands("physdev_op", Physdev)


@hypercall(33, "physdev_op", "command:u32 argument:ptr", note="others: ENOSYS")
def physdev_op(call: Call, command: int, argument: int) -> int:
    """Set the virtual IOPL or the I/O bitmap."""
    handler = _commands.handlers.get(command)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"physdev_op {command}")
    result: int = handler(call, argument)
    return result


@hypercall(19, "physdev_op_compat", "operation:ptr")
def physdev_op_compat(call: Call, operation: int) -> int:
    """The old form: command and arguments in one structure."""
    command = call.read(PhysdevOp, operation).cmd
    return physdev_op(call, command, operation + PhysdevOp.layout(call.width).offsets["u"])


@_commands.command(Physdev.SET_IOPL)
def _set_iopl(call: Call, argument: int) -> int:
    iopl = call.read(PhysdevSetIopl, argument).iopl
    if iopl > 3:
        raise XenError(Errno.EINVAL, f"IOPL {iopl}")
    call.vcpu.iopl = iopl
    return 0


@_commands.command(Physdev.SET_IOBITMAP)
def _set_iobitmap(call: Call, argument: int) -> int:
    request = call.read(PhysdevSetIobitmap, argument)
    if request.nr_ports > 65536 or not guest_may_use(request.bitmap, call.width):
        raise XenError(Errno.EINVAL, f"I/O bitmap of {request.nr_ports} ports at {request.bitmap:#x}")
    call.vcpu.io_bitmap, call.vcpu.io_bitmap_ports = request.bitmap, request.nr_ports
    return 0


@_commands.command(Physdev.IRQ_UNMASK_NOTIFY, note="there is no interrupt to unmask")
def _irq_unmask_notify(_call: Call, _argument: int) -> int:
    return 0


@_commands.command(Physdev.MAP_PIRQ, Status.REFUSED, "EPERM; ESRCH for an unknown domain")
def _map_pirq(call: Call, argument: int) -> int:
    existing(call, call.read(PhysdevMapPirq, argument).domid)
    raise XenError(Errno.EPERM, "map_pirq is for a domain with devices")


@_commands.command(Physdev.UNMAP_PIRQ, Status.REFUSED, "EPERM; ESRCH for an unknown domain")
def _unmap_pirq(call: Call, argument: int) -> int:
    existing(call, call.read(PhysdevUnmapPirq, argument).domid)
    raise XenError(Errno.EPERM, "unmap_pirq is for a domain with devices")


def _refused(command: Physdev, kind: type[AbiStruct], errno: Errno) -> None:
    """A command that is refused once its structure has been read. EFAULT."""

    @_commands.command(command, Status.REFUSED, errno.name)
    def refuse(call: Call, argument: int) -> int:
        call.read(kind, argument)
        raise XenError(errno, f"{command.name} is for a domain with devices")


_refused(Physdev.IRQ_STATUS_QUERY, PhysdevIrq, Errno.EINVAL)
_refused(Physdev.EOI, PhysdevEoi, Errno.EINVAL)
_refused(Physdev.APIC_READ, PhysdevApic, Errno.EPERM)
_refused(Physdev.APIC_WRITE, PhysdevApic, Errno.EPERM)
_refused(Physdev.ALLOC_IRQ_VECTOR, PhysdevIrq, Errno.EPERM)
_refused(Physdev.MANAGE_PCI_ADD, PhysdevManagePci, Errno.EPERM)
_refused(Physdev.MANAGE_PCI_REMOVE, PhysdevManagePci, Errno.EPERM)
_refused(Physdev.MANAGE_PCI_ADD_EXT, PhysdevManagePciExt, Errno.EPERM)
_refused(Physdev.RESTORE_MSI, PhysdevManagePci, Errno.ENODEV)
_refused(Physdev.SETUP_GSI, PhysdevSetupGsi, Errno.EPERM)
_refused(Physdev.PCI_DEVICE_ADD, PhysdevPciDeviceAdd, Errno.EPERM)
_refused(Physdev.PCI_DEVICE_REMOVE, PhysdevPciDevice, Errno.EPERM)
_refused(Physdev.RESTORE_MSI_EXT, PhysdevPciDevice, Errno.ENODEV)
_refused(Physdev.PREPARE_MSIX, PhysdevPciDevice, Errno.EPERM)
_refused(Physdev.RELEASE_MSIX, PhysdevPciDevice, Errno.EPERM)
_commands.refuse({Physdev.PCI_MMCFG_RESERVED: Errno.EPERM})
