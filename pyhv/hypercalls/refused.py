# SPDX-License-Identifier: GPL-2.0-only
"""console_io, and the hypercalls that a plain domU is refused.

This Xen is one without HVM, profiling, Argo and XSM, with verbose console output; kexec and hypfs it has, for
others. The control calls look at their structure before they look at the caller, as Xen's do.
"""

from pyhv.abi.errno import Errno
from pyhv.abi.structs import Domctl, PlatformOp, Sysctl
from pyhv.errors import XenError
from pyhv.hypercalls.context import STEPS_A_LOOK, Again, Call
from pyhv.hypercalls.table import Status, hypercall

_CONSOLE_WRITE = 0
_CONSOLE_CHUNK = 4096
_SYSCTL_VERSION, _DOMCTL_VERSION, _PLATFORM_VERSION = 0x15, 0x15, 0x0300_0001
_DOMCTL_WITHOUT_DOMAIN = frozenset({1, 5})
"""Of createdomain and getdomaininfo the domain need not exist."""


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


def _versioned(operation: Sysctl | Domctl | PlatformOp, version: int) -> None:
    """EACCES for a structure of another interface version than ours."""
    if operation.interface_version != version:
        raise XenError(Errno.EACCES, f"interface version {operation.interface_version:#x}")


@hypercall(7, "platform_op", "op:ptr", Status.REFUSED, "EACCES, EPERM")
def platform_op(call: Call, operation: int) -> int:
    """For the hardware domain."""
    _versioned(call.read(PlatformOp, operation), _PLATFORM_VERSION)
    raise XenError(Errno.EPERM, "platform_op is not for a plain domU")


@hypercall(35, "sysctl", "op:ptr", Status.REFUSED, "EACCES, EPERM")
def sysctl(call: Call, operation: int) -> int:
    """For the toolstack."""
    _versioned(call.read(Sysctl, operation), _SYSCTL_VERSION)
    raise XenError(Errno.EPERM, "sysctl is not for a plain domU")


@hypercall(36, "domctl", "op:ptr", Status.REFUSED, "EACCES, ESRCH, EPERM")
def domctl(call: Call, operation: int) -> int:
    """For the toolstack."""
    request = call.read(Domctl, operation)
    _versioned(request, _DOMCTL_VERSION)
    if request.cmd not in _DOMCTL_WITHOUT_DOMAIN:
        call.existing(request.domain)
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
