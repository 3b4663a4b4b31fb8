# SPDX-License-Identifier: GPL-2.0-only
"""xen_version, console_io and the hypercalls that a plain domU is refused (public header `version.h`)."""

import struct

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Assist, Feature
from pyhv.abi.structs import FeatureInfo
from pyhv.address import COMPAT_VIRT_START, HYPERVISOR_VIRT_START, PAGE_SIZE
from pyhv.cpu.cpuid import XEN_VERSION
from pyhv.errors import XenError
from pyhv.hypercalls.context import STEPS_A_LOOK, Again, Call
from pyhv.hypercalls.table import Status, hypercall

_CAPABILITIES = b"xen-3.0-x86_64 "
_DENIED = b"<denied>"
_FEATURES = sum(1 << feature for feature in Feature)
_PAE_PGDIR_ABOVE_4GB = 4


def _fixed(text: bytes, size: int) -> bytes:
    return text[: size - 1].ljust(size, b"\0")


@hypercall(17, "xen_version", "command:u32 argument:ptr")
def xen_version(call: Call, command: int, argument: int) -> int:
    """Who the hypervisor is and what it can do."""
    if command == 0:
        return XEN_VERSION[0] << 16 | XEN_VERSION[1]
    if command == 7:
        if argument:
            raise XenError(Errno.EINVAL, "XENVER_pagesize takes no argument")
        return PAGE_SIZE
    if command == 6:
        return _features(call, argument)
    if command == 10:
        raise XenError(Errno.ENODATA, "no build id")
    answer = _answer(call, command)
    if answer is None:
        raise XenError(Errno.ENOSYS, f"xen_version {command}")
    call.memory.write(argument, answer)
    return 0


def _answer(call: Call, command: int) -> bytes | None:
    if command == 1:
        return _fixed(b".0-pyhv", 16)
    if command == 2:
        return _fixed(_DENIED, 64) + _fixed(_DENIED, 16) + _fixed(_DENIED, 32) + _fixed(_DENIED, 32)
    if command == 3:
        return _fixed(_CAPABILITIES, 1024)
    if command == 4:
        return _fixed(_DENIED, 64)
    if command == 5:
        if call.width == 32:
            return struct.pack("<I", COMPAT_VIRT_START)
        return struct.pack("<Q", HYPERVISOR_VIRT_START)
    if command == 8:
        return bytes.fromhex(call.domain.config.uuid.replace("-", ""))
    if command == 9:
        return _fixed(_DENIED, 1024)
    return None


def _features(call: Call, argument: int) -> int:
    info = call.read(FeatureInfo, argument)
    if info.submap_idx:
        raise XenError(Errno.EINVAL, f"feature submap {info.submap_idx}")
    info.submap = _FEATURES
    if Assist.PAE_EXTENDED_CR3 in call.domain.assists:
        info.submap |= 1 << _PAE_PGDIR_ABOVE_4GB
    call.write(argument, info)
    return 0


_CONSOLE_WRITE, _CONSOLE_READ = 0, 1
_CONSOLE_CHUNK = 4096


@hypercall(
    18, "console_io", "command:u32 count:u32 buffer:ptr", note="writes go to the -v log; reads give nothing"
)
def console_io(call: Call, command: int, count: int, buffer: int) -> int:
    """The hypervisor's own console, as a verbose-debug Xen offers it."""
    if command == _CONSOLE_WRITE:
        written = 0
        while written < count:
            step = min(count - written, _CONSOLE_CHUNK)
            call.host.debug_output(call.domain, call.memory.read(buffer + written, step))
            written += step
            if written < count and call.preempted(STEPS_A_LOOK):
                raise Again(command, count - written, buffer + written)
        return 0
    if command == _CONSOLE_READ:
        return 0
    raise XenError(Errno.ENOSYS, f"console_io {command}")


def _refused(number: int, name: str, arguments: str, errno: Errno) -> None:
    @hypercall(number, name, arguments, Status.REFUSED, errno.name)
    def refuse(_call: Call, *_arguments: int) -> int:
        raise XenError(errno, f"{name} is not for a plain domU")


for _entry in (
    (7, "platform_op", "op:ptr", Errno.EPERM),
    (27, "xsm_op", "op:ptr", Errno.ENOSYS),
    (31, "xenoprof_op", "op:u32 argument:ptr", Errno.ENOSYS),
    (34, "hvm_op", "op:u32 argument:ptr", Errno.ENOSYS),
    (35, "sysctl", "op:ptr", Errno.EPERM),
    (36, "domctl", "op:ptr", Errno.EPERM),
    (37, "kexec_op", "op:u32 argument:ptr", Errno.ENOSYS),
    (38, "tmem_op", "op:ptr", Errno.ENOSYS),
    (39, "argo_op", "op:u32 a1:ptr a2:ptr a3:ulong a4:ulong", Errno.ENOSYS),
    (40, "xenpmu_op", "op:u32 argument:ptr", Errno.EOPNOTSUPP),
    (41, "dm_op", "domid:u32 count:u32 buffers:ptr", Errno.ENOSYS),
    (42, "hypfs_op", "op:u32 a1:ptr a2:ptr a3:ulong a4:ulong", Errno.ENOSYS),
    (48, "mca", "op:ptr", Errno.EPERM),
):
    _refused(*_entry)
