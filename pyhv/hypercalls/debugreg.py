# SPDX-License-Identifier: GPL-2.0-only
"""Debug registers: the rules that the hypercalls and MOV DR share (Xen 4.17; Intel SDM volume 3, chapter 17).

This module keeps values; `traps/debug.py` makes them fire.
"""

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall
from pyhv.abi.x86 import CR4_DE
from pyhv.address import MASK32, guest_may_use
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.signature import u32, ulong
from pyhv.hypercalls.table import hypercall

_DR6_FIXED = 0xFFFF_0FF0
_DR6_WRITABLE = 0xE00F
_DR7_FIXED = 0x400
_DR7_RESERVED = 0xD800


def _register(vcpu: Vcpu, number: int) -> int:
    """Resolve the aliases DR4 and DR5."""
    if number in (4, 5):
        if vcpu.cr4 & CR4_DE:
            raise XenError(Errno.ENODEV, f"DR{number} with CR4.DE set")
        return number + 2
    if number > 7:
        raise XenError(Errno.ENODEV, f"no debug register {number}")
    return number


def set_debugreg(vcpu: Vcpu, number: int, value: int) -> None:
    """Write a debug register of the vCPU."""
    number = _register(vcpu, number)
    if number < 4:
        if not guest_may_use(value):
            raise XenError(Errno.EPERM, "breakpoint address in the hypervisor's area")
    elif number == 6:
        if value > MASK32:
            raise XenError(Errno.EINVAL, "upper half of DR6")
        value = value & _DR6_WRITABLE | _DR6_FIXED
    else:
        if value > MASK32:
            raise XenError(Errno.EINVAL, "upper half of DR7")
        if value & 1 << 13:
            raise XenError(Errno.EPERM, "general detect in DR7")
        for breakpoint_number in range(4):
            kind = value >> 16 + 4 * breakpoint_number & 3
            if kind == 2 and not vcpu.cr4 & CR4_DE:
                raise XenError(Errno.EPERM, "I/O breakpoint without CR4.DE")
        value = value & ~_DR7_RESERVED | _DR7_FIXED
    vcpu.debug.registers[number] = value


def get_debugreg(vcpu: Vcpu, number: int) -> int:
    """Read a debug register of the vCPU."""
    return vcpu.debug.registers[_register(vcpu, number)]


@hypercall(Hypercall.SET_DEBUGREG)
def set_debugreg_op(call: Call, register: u32, value: ulong) -> int:
    """Write a debug register, 0 to 7; 4 and 5 are other names of 6 and 7.

    ENODEV: no such register, or 4 or 5 with CR4.DE set; then of 0 to 3, EPERM: an address in the
    hypervisor's area; of 6, EINVAL: more than 32 bits; of 7, EINVAL: more than 32 bits; EPERM: general
    detect, or an I/O breakpoint without CR4.DE.
    """
    set_debugreg(call.vcpu, register, value)
    call.processor.breakpoints_changed()
    return 0


@hypercall(Hypercall.GET_DEBUGREG)
def get_debugreg_op(call: Call, register: u32) -> int:
    """Return a debug register, 0 to 7; 4 and 5 are other names of 6 and 7.

    ENODEV: no such register, or 4 or 5 with CR4.DE set.
    """
    return get_debugreg(call.vcpu, register)
