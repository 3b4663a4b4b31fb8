# SPDX-License-Identifier: GPL-2.0-only
"""physdev_op: the two commands that a domU without devices may use (public header `physdev.h`)."""

import enum

from pyhv.abi.errno import Errno
from pyhv.abi.structs import PhysdevSetIobitmap, PhysdevSetIopl
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.table import Commands, hypercall


class Physdev(enum.IntEnum):
    """Commands."""

    SET_IOPL = 6
    SET_IOBITMAP = 7


_commands = Commands("physdev_op", Physdev)


@hypercall(33, "physdev_op", "command:u32 argument:ptr", note="others: ENOSYS, a domU has no devices")
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
    return physdev_op(call, call.memory.read_u32(operation), operation + 8)


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
