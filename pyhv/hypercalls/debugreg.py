# SPDX-License-Identifier: GPL-2.0-only
"""set_debugreg, get_debugreg (public header `xen.h`). The rules are in `domain/debug.py`."""

from pyhv.abi.numbers import Hypercall
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.signature import u32, ulong
from pyhv.hypercalls.table import hypercall


@hypercall(Hypercall.SET_DEBUGREG)
def set_debugreg(call: Call, register: u32, value: ulong) -> int:
    """Write a debug register, 0 to 7; 4 and 5 are other names of 6 and 7.

    ENODEV: no such register, or 4 or 5 with CR4.DE set; then of 0 to 3, EPERM: an address in the
    hypervisor's area; of 6, EINVAL: more than 32 bits; of 7, EINVAL: more than 32 bits; EPERM: general
    detect, or an I/O breakpoint without CR4.DE.
    """
    call.vcpu.debug.write(register, value, call.vcpu.cr4)
    call.processor.breakpoints_changed()
    return 0


@hypercall(Hypercall.GET_DEBUGREG)
def get_debugreg(call: Call, register: u32) -> int:
    """Return a debug register, 0 to 7; 4 and 5 are other names of 6 and 7.

    ENODEV: no such register, or 4 or 5 with CR4.DE set.
    """
    return call.vcpu.debug.read(register, call.vcpu.cr4)
