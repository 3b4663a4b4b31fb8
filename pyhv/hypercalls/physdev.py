# SPDX-License-Identifier: GPL-2.0-only
"""physdev_op (public header `physdev.h`): I/O privilege, and what a domU without devices is told.

Devices and their interrupts belong to others: the commands about them are refused after their structure has
been read, as on Xen. The pages of interrupt acknowledgements (pirq_eoi_gmfn) are not offered.
"""

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Physdev
from pyhv.abi.structs import PhysdevSetIobitmap, PhysdevSetIopl
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
    return physdev_op(call, call.memory.read_u32(operation), operation + call.word)


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
    if request.nr_ports > 65536:
        raise XenError(Errno.EINVAL, f"I/O bitmap of {request.nr_ports} ports")
    call.vcpu.io_bitmap, call.vcpu.io_bitmap_ports = request.bitmap, request.nr_ports
    return 0


@_commands.command(Physdev.IRQ_UNMASK_NOTIFY, note="there is no interrupt to unmask")
def _irq_unmask_notify(_call: Call, _argument: int) -> int:
    return 0


def _refused(command: Physdev, size: int, errno: Errno, *, names_domain: bool = False) -> None:
    """A command that is refused once its structure of `size` bytes has been read. EFAULT, ESRCH."""

    @_commands.command(command, Status.REFUSED, errno.name)
    def refuse(call: Call, argument: int) -> int:
        raw = call.memory.read(argument, size)
        if names_domain:
            existing(call, int.from_bytes(raw[:2], "little"))
        raise XenError(errno, f"{command.name} is for a domain with devices")


_refused(Physdev.IRQ_STATUS_QUERY, 8, Errno.EINVAL)
_refused(Physdev.EOI, 4, Errno.EINVAL)
_refused(Physdev.APIC_READ, 16, Errno.EPERM)
_refused(Physdev.APIC_WRITE, 16, Errno.EPERM)
_refused(Physdev.ALLOC_IRQ_VECTOR, 8, Errno.EPERM)
_refused(Physdev.MAP_PIRQ, 16, Errno.EPERM, names_domain=True)
_refused(Physdev.UNMAP_PIRQ, 8, Errno.EPERM, names_domain=True)
for _command, _size in (
    (Physdev.MANAGE_PCI_ADD, 2), (Physdev.MANAGE_PCI_REMOVE, 2), (Physdev.MANAGE_PCI_ADD_EXT, 10),
    (Physdev.RESTORE_MSI, 2), (Physdev.SETUP_GSI, 6), (Physdev.PCI_MMCFG_RESERVED, 16),
    (Physdev.PCI_DEVICE_ADD, 12), (Physdev.PCI_DEVICE_REMOVE, 4), (Physdev.RESTORE_MSI_EXT, 4),
    (Physdev.PREPARE_MSIX, 4), (Physdev.RELEASE_MSIX, 4),
):  # fmt: skip
    _refused(_command, _size, Errno.EPERM)
