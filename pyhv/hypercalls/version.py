# SPDX-License-Identifier: GPL-2.0-only
"""xen_version: who the hypervisor is and what it can do (public headers `version.h`, `features.h`).

Strings have a fixed size and are padded with zeros. What Xen denies a plain domain is the string "<denied>".
"""

import struct

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Assist, Feature, Xenver
from pyhv.abi.structs import FeatureInfo
from pyhv.address import COMPAT_VIRT_START, HYPERVISOR_VIRT_START, PAGE_SIZE
from pyhv.cpu.cpuid import XEN_VERSION
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.table import Commands, Status, hypercall

_commands = Commands("xen_version", Xenver)
_EXTRAVERSION = b".0-pyhv"
_CAPABILITIES = b"xen-3.0-x86_64 xen-3.0-x86_32p "
_COMPILED = ((b"python", 64), (b"pyhv", 16), (b"pyhv", 32), (b"unknown", 32))
"""Compiler, by whom, in which domain, when."""
_CHANGESET = b"unavailable"
_DENIED = b"<denied>"
_FEATURES = sum(1 << feature for feature in Feature)
_PAE_PGDIR_ABOVE_4GB = 4


@hypercall(17, "xen_version", "command:u32 argument:ptr")
def xen_version(call: Call, command: int, argument: int) -> int:
    """Who the hypervisor is and what it can do."""
    handler = _commands.handlers.get(command)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"xen_version {command}")
    result: int = handler(call, argument)
    return result


def _fixed(text: bytes, size: int) -> bytes:
    return text[: size - 1].ljust(size, b"\0")


@_commands.command(Xenver.VERSION)
def _version(_call: Call, _argument: int) -> int:
    return XEN_VERSION[0] << 16 | XEN_VERSION[1]


@_commands.command(Xenver.EXTRAVERSION)
def _extraversion(call: Call, argument: int) -> int:
    call.memory.write(argument, _fixed(_EXTRAVERSION, 16))
    return 0


@_commands.command(Xenver.COMPILE_INFO)
def _compile_info(call: Call, argument: int) -> int:
    call.memory.write(argument, b"".join(_fixed(text, size) for text, size in _COMPILED))
    return 0


@_commands.command(Xenver.CAPABILITIES)
def _capabilities(call: Call, argument: int) -> int:
    call.memory.write(argument, _fixed(_CAPABILITIES, 1024))
    return 0


@_commands.command(Xenver.CHANGESET)
def _changeset(call: Call, argument: int) -> int:
    call.memory.write(argument, _fixed(_CHANGESET, 64))
    return 0


@_commands.command(Xenver.PLATFORM_PARAMETERS)
def _platform_parameters(call: Call, argument: int) -> int:
    """Where the hypervisor's part of the address space begins, as an `unsigned long`."""
    wide = call.width == 64
    answer = struct.pack("<Q", HYPERVISOR_VIRT_START) if wide else struct.pack("<I", COMPAT_VIRT_START)
    call.memory.write(argument, answer)
    return 0


@_commands.command(Xenver.GET_FEATURES)
def _features(call: Call, argument: int) -> int:
    info = call.read(FeatureInfo, argument)
    if info.submap_idx:
        raise XenError(Errno.EINVAL, f"feature submap {info.submap_idx}")
    info.submap = _FEATURES
    if Assist.PAE_EXTENDED_CR3 in call.domain.assists:
        info.submap |= 1 << _PAE_PGDIR_ABOVE_4GB
    call.write(argument, info)
    return 0


@_commands.command(Xenver.PAGESIZE)
def _pagesize(_call: Call, argument: int) -> int:
    if argument:
        raise XenError(Errno.EINVAL, "XENVER_pagesize takes no argument")
    return PAGE_SIZE


@_commands.command(Xenver.GUEST_HANDLE)
def _guest_handle(call: Call, argument: int) -> int:
    call.memory.write(argument, bytes.fromhex(call.domain.config.uuid.replace("-", "")))
    return 0


@_commands.command(Xenver.COMMANDLINE, Status.REFUSED, "<denied>")
def _commandline(call: Call, argument: int) -> int:
    call.memory.write(argument, _fixed(_DENIED, 1024))
    return 0


_commands.refuse({Xenver.BUILD_ID: Errno.EPERM})
