# SPDX-License-Identifier: GPL-2.0-only
"""console_io, and the hypercalls that a plain domU is refused.

This Xen is one without HVM, profiling, Argo and XSM, with verbose console output; kexec and hypfs it has, for
others. The control calls look at their structure before they look at the caller, as Xen's do.
"""

import struct

from pyhv.abi.errno import Errno
from pyhv.errors import XenError
from pyhv.hypercalls.context import STEPS_A_LOOK, Again, Call
from pyhv.hypercalls.table import Status, hypercall

_CONSOLE_WRITE = 0
_CONSOLE_CHUNK = 4096
_SYSCTL_VERSION, _DOMCTL_VERSION, _PLATFORM_VERSION = 0x15, 0x15, 0x0300_0000
_SYSCTL_SIZE, _DOMCTL_SIZE, _PLATFORM_SIZE = 136, 144, 136
_DOMCTL_CREATE = 1


@hypercall(18, "console_io", "command:u32 count:u32 buffer:ptr", note="writes go to the -v log; reads: EPERM")
def console_io(call: Call, command: int, count: int, buffer: int) -> int:
    """The hypervisor's own console, as a verbose-debug Xen offers it."""
    if command != _CONSOLE_WRITE:
        raise XenError(Errno.EPERM, f"console_io {command} is for the owner of the console")
    written = 0
    while written < count:
        step = min(count - written, _CONSOLE_CHUNK)
        call.host.debug_output(call.domain, call.memory.read(buffer + written, step))
        written += step
        if call.preempted(step * STEPS_A_LOOK // _CONSOLE_CHUNK) and written < count:
            raise Again(command, count - written, buffer + written)
    return 0


def _control(call: Call, operation: int, size: int, version: int, at: int) -> int:
    """Read a control structure whose word `at`, 0 or 1, is its interface version; returns the other word.

    EFAULT; EACCES: another version.
    """
    words = struct.unpack("<2I", call.memory.read(operation, size)[:8])
    if words[at] != version:
        raise XenError(Errno.EACCES, f"interface version {words[at]:#x}")
    return int(words[1 - at])


@hypercall(7, "platform_op", "op:ptr", Status.REFUSED, "EACCES, EPERM")
def platform_op(call: Call, operation: int) -> int:
    """For the hardware domain."""
    _control(call, operation, _PLATFORM_SIZE, _PLATFORM_VERSION, 1)
    raise XenError(Errno.EPERM, "platform_op is not for a plain domU")


@hypercall(35, "sysctl", "op:ptr", Status.REFUSED, "EACCES, EPERM")
def sysctl(call: Call, operation: int) -> int:
    """For the toolstack."""
    _control(call, operation, _SYSCTL_SIZE, _SYSCTL_VERSION, 0)
    raise XenError(Errno.EPERM, "sysctl is not for a plain domU")


@hypercall(36, "domctl", "op:ptr", Status.REFUSED, "EACCES, ESRCH, EPERM")
def domctl(call: Call, operation: int) -> int:
    """For the toolstack."""
    command = _control(call, operation, _DOMCTL_SIZE, _DOMCTL_VERSION, 0)
    if command != _DOMCTL_CREATE:
        call.existing(int.from_bytes(call.memory.read(operation + 8, 2), "little"))
    raise XenError(Errno.EPERM, "domctl is not for a plain domU")


def _refused(number: int, name: str, arguments: str, errno: Errno) -> None:
    @hypercall(number, name, arguments, Status.REFUSED, errno.name)
    def refuse(_call: Call, *_arguments: int) -> int:
        raise XenError(errno, f"{name} is not for a plain domU")


for _entry in (
    (27, "xsm_op", "op:ptr", Errno.ENOSYS),
    (31, "xenoprof_op", "op:u32 argument:ptr", Errno.ENOSYS),
    (34, "hvm_op", "op:u32 argument:ptr", Errno.ENOSYS),
    (37, "kexec_op", "op:u32 argument:ptr", Errno.EPERM),
    (38, "tmem_op", "op:ptr", Errno.ENOSYS),
    (39, "argo_op", "op:u32 a1:ptr a2:ptr a3:ulong a4:ulong", Errno.ENOSYS),
    (40, "xenpmu_op", "op:u32 argument:ptr", Errno.EOPNOTSUPP),
    (41, "dm_op", "domid:u32 count:u32 buffers:ptr", Errno.ENOSYS),
    (42, "hypfs_op", "op:u32 a1:ptr a2:ptr a3:ulong a4:ulong", Errno.EPERM),
    (48, "mca", "op:ptr", Errno.EPERM),
):
    _refused(*_entry)
