# SPDX-License-Identifier: GPL-2.0-only
"""console_io, and the hypercalls that a plain domU is refused.

This Xen is one without HVM, profiling, Argo and XSM, with verbose console output; kexec and hypfs it has, for
others. The control calls look at their structure before they look at the caller, as Xen's do.
"""

from typing import Final, NoReturn

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import ConsoleIo, Hypercall
from pyhv.abi.structs import Domctl, PlatformOp, Sysctl
from pyhv.clock import STEPS_A_LOOK
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.signature import Ptr, u32, ulong
from pyhv.hypercalls.table import Status, hypercall

_CONSOLE_CHUNK: Final = 4096
_SYSCTL_VERSION, _DOMCTL_VERSION, _PLATFORM_VERSION = 0x15, 0x15, 0x0300_0001
_DOMCTL_WITHOUT_DOMAIN: Final = frozenset({1, 5})
"""Of createdomain and getdomaininfo the domain need not exist."""


@hypercall(Hypercall.CONSOLE_IO)
def console_io(call: Call, command: u32, count: u32, buffer: Ptr) -> int:
    """Write to the hypervisor's own console, as a verbose-debug Xen offers it: to the log of `-v`.

    EPERM: any command but the one that writes (0); EFAULT: what comes before is written. Gives way.
    """
    if command != ConsoleIo.WRITE:
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


@hypercall(Hypercall.PLATFORM_OP, Status.REFUSED)
def platform_op(call: Call, operation: Ptr) -> int:
    """Command the platform (`PlatformOp`): for the hardware domain.

    EFAULT; EACCES: another version of the interface; EPERM.
    """
    _versioned(call.read(PlatformOp, operation), _PLATFORM_VERSION)
    raise XenError(Errno.EPERM, "platform_op is not for a plain domU")


@hypercall(Hypercall.SYSCTL, Status.REFUSED)
def sysctl(call: Call, operation: Ptr) -> int:
    """Command the hypervisor (`Sysctl`): for the toolstack.

    EFAULT; EACCES: another version of the interface; EPERM.
    """
    _versioned(call.read(Sysctl, operation), _SYSCTL_VERSION)
    raise XenError(Errno.EPERM, "sysctl is not for a plain domU")


@hypercall(Hypercall.DOMCTL, Status.REFUSED)
def domctl(call: Call, operation: Ptr) -> int:
    """Command a domain (`Domctl`): for the toolstack.

    EFAULT; EACCES: another version of the interface; ESRCH: no such domain, unless the command needs none;
    EPERM.
    """
    request = call.read(Domctl, operation)
    _versioned(request, _DOMCTL_VERSION)
    if request.cmd not in _DOMCTL_WITHOUT_DOMAIN:
        call.existing(request.domain)
    raise XenError(Errno.EPERM, "domctl is not for a plain domU")


def _refuse(errno: Errno, what: str) -> NoReturn:
    raise XenError(errno, f"{what} is not for a plain domU")


@hypercall(Hypercall.XSM_OP, Status.REFUSED)
def xsm_op(_call: Call, _operation: Ptr) -> int:
    """Command a security module, which this Xen is built without. ENOSYS."""
    _refuse(Errno.ENOSYS, "xsm_op")


@hypercall(Hypercall.XENOPROF_OP, Status.REFUSED)
def xenoprof_op(_call: Call, _command: u32, _argument: Ptr) -> int:
    """Profile the machine, which this Xen is built without. ENOSYS."""
    _refuse(Errno.ENOSYS, "xenoprof_op")


@hypercall(Hypercall.HVM_OP, Status.REFUSED)
def hvm_op(_call: Call, _command: u32, _argument: Ptr) -> int:
    """Command an HVM domain, which this Xen is built without. ENOSYS."""
    _refuse(Errno.ENOSYS, "hvm_op")


@hypercall(Hypercall.KEXEC_OP, Status.REFUSED)
def kexec_op(_call: Call, _command: u32, _argument: Ptr) -> int:
    """Load another kernel in the hypervisor's place: for the hardware domain. EPERM."""
    _refuse(Errno.EPERM, "kexec_op")


@hypercall(Hypercall.TMEM_OP, Status.REFUSED)
def tmem_op(_call: Call, _operation: Ptr) -> int:
    """Use transcendent memory, which Xen has no longer. ENOSYS."""
    _refuse(Errno.ENOSYS, "tmem_op")


@hypercall(Hypercall.ARGO_OP, Status.REFUSED)
def argo_op(_call: Call, _command: u32, _a1: Ptr, _a2: Ptr, _a3: ulong, _a4: ulong) -> int:
    """Send messages between domains, which this Xen is built without. ENOSYS."""
    _refuse(Errno.ENOSYS, "argo_op")


@hypercall(Hypercall.XENPMU_OP, Status.REFUSED)
def xenpmu_op(_call: Call, _command: u32, _argument: Ptr) -> int:
    """Use the performance counters, which are not offered. EOPNOTSUPP."""
    _refuse(Errno.EOPNOTSUPP, "xenpmu_op")


@hypercall(Hypercall.DM_OP, Status.REFUSED)
def dm_op(_call: Call, _domid: u32, _count: u32, _buffers: Ptr) -> int:
    """Be a device model to an HVM domain, which this Xen is built without. ENOSYS."""
    _refuse(Errno.ENOSYS, "dm_op")


@hypercall(Hypercall.HYPFS_OP, Status.REFUSED)
def hypfs_op(_call: Call, _command: u32, _a1: Ptr, _a2: Ptr, _a3: ulong, _a4: ulong) -> int:
    """Read and set the hypervisor's parameters: for the toolstack. EPERM."""
    _refuse(Errno.EPERM, "hypfs_op")


@hypercall(Hypercall.MCA, Status.REFUSED)
def mca(_call: Call, _operation: Ptr) -> int:
    """Handle machine checks: for the hardware domain. EPERM."""
    _refuse(Errno.EPERM, "mca")
