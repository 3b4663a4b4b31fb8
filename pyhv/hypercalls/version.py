# SPDX-License-Identifier: GPL-2.0-only
"""xen_version: who the hypervisor is and what it can do (public headers `version.h`, `features.h`).

Strings have a fixed size and are padded with zeros. What Xen denies a plain domain is the string "<denied>".
"""

import struct
from typing import Final

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Assist, Feature, Hypercall, Xenver
from pyhv.abi.structs import FeatureInfo
from pyhv.address import COMPAT_VIRT_START, HYPERVISOR_VIRT_START, PAGE_SIZE
from pyhv.cpu.cpuid import XEN_VERSION
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.signature import Ptr, u32
from pyhv.hypercalls.table import Commands, Status, hypercall

_commands = Commands[[int], int](Hypercall.XEN_VERSION, Xenver)
_EXTRAVERSION: Final = b".0-pyhv"
_CAPABILITIES: Final = b"xen-3.0-x86_64 xen-3.0-x86_32p "
_COMPILED: Final = ((b"python", 64), (b"pyhv", 16), (b"pyhv", 32), (b"unknown", 32))
"""Compiler, by whom, in which domain, when."""
_CHANGESET: Final = b"unavailable"
_DENIED: Final = b"<denied>"
_FEATURES: Final = sum(1 << feature for feature in Feature)
_PAE_PGDIR_ABOVE_4GB: Final = 4


@hypercall(Hypercall.XEN_VERSION)
def xen_version(call: Call, command: u32, argument: Ptr) -> int:
    """Tell who the hypervisor is and what it can do.

    ENOSYS: no such command; EFAULT: the answer cannot be stored.
    """
    return _commands[command](call, argument)


def _fixed(text: bytes, size: int) -> bytes:
    return text[: size - 1].ljust(size, b"\0")


@_commands.command(Xenver.VERSION)
def version(_call: Call, _argument: int) -> int:
    """Return Xen's version: the major number above the 16 bits of the minor one. Takes no argument."""
    return XEN_VERSION[0] << 16 | XEN_VERSION[1]


@_commands.command(Xenver.EXTRAVERSION)
def extraversion(call: Call, argument: int) -> int:
    """Store what follows the version's numbers: 16 bytes of text."""
    call.memory.write(argument, _fixed(_EXTRAVERSION, 16))
    return 0


@_commands.command(Xenver.COMPILE_INFO)
def compile_info(call: Call, argument: int) -> int:
    """Store the compiler, who used it, in which domain and when: 64, 16, 32 and 32 bytes of text."""
    call.memory.write(argument, b"".join(_fixed(text, size) for text, size in _COMPILED))
    return 0


@_commands.command(Xenver.CAPABILITIES)
def capabilities(call: Call, argument: int) -> int:
    """Store the kinds of guests that can be run: 1024 bytes of text."""
    call.memory.write(argument, _fixed(_CAPABILITIES, 1024))
    return 0


@_commands.command(Xenver.CHANGESET)
def changeset(call: Call, argument: int) -> int:
    """Store the sources' revision: 64 bytes of text."""
    call.memory.write(argument, _fixed(_CHANGESET, 64))
    return 0


@_commands.command(Xenver.PLATFORM_PARAMETERS)
def platform_parameters(call: Call, argument: int) -> int:
    """Store where the hypervisor's part of the address space begins, as an `unsigned long`."""
    wide = call.width == 64
    answer = struct.pack("<Q", HYPERVISOR_VIRT_START) if wide else struct.pack("<I", COMPAT_VIRT_START)
    call.memory.write(argument, answer)
    return 0


@_commands.command(Xenver.GET_FEATURES, FeatureInfo)
def get_features(call: Call, argument: int) -> int:
    """Tell the features (XENFEAT) in a submap, of which there is one.

    EINVAL: another submap than 0.
    """
    info = call.read(FeatureInfo, argument)
    if info.submap_idx:
        raise XenError(Errno.EINVAL, f"feature submap {info.submap_idx}")
    info.submap = _FEATURES
    if Assist.PAE_EXTENDED_CR3 in call.domain.assists:
        info.submap |= 1 << _PAE_PGDIR_ABOVE_4GB
    call.write(argument, info)
    return 0


@_commands.command(Xenver.PAGESIZE)
def pagesize(_call: Call, argument: int) -> int:
    """Return the size of a page in bytes.

    EINVAL: an argument other than NULL.
    """
    if argument:
        raise XenError(Errno.EINVAL, "XENVER_pagesize takes no argument")
    return PAGE_SIZE


@_commands.command(Xenver.GUEST_HANDLE)
def guest_handle(call: Call, argument: int) -> int:
    """Store the domain's UUID: 16 bytes."""
    call.memory.write(argument, bytes.fromhex(call.domain.config.uuid.replace("-", "")))
    return 0


@_commands.command(Xenver.COMMANDLINE, status=Status.REFUSED)
def commandline(call: Call, argument: int) -> int:
    """Store the hypervisor's command line, of which a plain domain is told the text `<denied>`. No errno."""
    call.memory.write(argument, _fixed(_DENIED, 1024))
    return 0


_commands.refuse(Xenver.BUILD_ID, Errno.EPERM, "Tell the identity of the hypervisor's binary.")
