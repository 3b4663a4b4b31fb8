# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's debug registers, and what is under way of a single step (`traps/debug.py` makes them fire).

The rules of reading and writing are those of the hypercalls and of MOV DR alike (Xen 4.17; Intel SDM volume
3, chapter 17).
"""

from dataclasses import dataclass, field
from typing import Annotated, Final

from pyhv.abi.errno import Errno
from pyhv.abi.layout import u64
from pyhv.abi.x86 import CR4_DE
from pyhv.address import MASK32, guest_may_use
from pyhv.domain.fields import DebugFields
from pyhv.errors import XenError

_RESET_DR6, _RESET_DR7 = 0xFFFF_0FF0, 0x400
_DR6_FIXED: Final = 0xFFFF_0FF0
_DR6_WRITABLE: Final = 0xE00F
_DR7_FIXED: Final = 0x400
_DR7_RESERVED: Final = 0xD800
_DR7_GENERAL_DETECT: Final = 1 << 13
_IO: Final = 2
"""Kind of a breakpoint in DR7: at a port."""


@dataclass(slots=True)
class DebugState(DebugFields):
    """The debug hardware as one vCPU sees it."""

    registers: Annotated[list[u64], 8] = field(default_factory=lambda: [0] * 6 + [_RESET_DR6, _RESET_DR7])
    """DR0..DR7; 4 and 5 are aliases and stay 0."""
    due: u64 | None = None
    """Linear address of an instruction that the engine has stopped at because it must be a step, until it is
    done; the vCPU may be taken off the processor before."""
    unstepped: bool = False
    """The iret hypercall has set TF, and nothing has happened since: a trap comes before it is due."""
    approach: tuple[u64, u64] = (0, 0)
    """First and one behind the last linear address of code through which the vCPU is led step by step, before
    a fetch that fails; for the rest of its turn at most."""
    swallow_step: bool = False
    """SYSENTER was executed with TF set: the single step that the emulator reports next is not one."""

    def read(self, number: int, cr4: int) -> int:
        """A debug register, 4 and 5 being other names of 6 and 7. ENODEV: no such register."""
        return self.registers[_resolve(number, cr4)]

    def write(self, number: int, value: int, cr4: int) -> None:
        """Write a debug register; what is fixed in it stays.

        ENODEV: no such register. EPERM: an address in the hypervisor's area, general detect, or an I/O
        breakpoint without CR4.DE. EINVAL: more than 32 bits in DR6 or DR7.
        """
        number = _resolve(number, cr4)
        if number < 4:
            if not guest_may_use(value):
                raise XenError(Errno.EPERM, "breakpoint address in the hypervisor's area")
        elif value > MASK32:
            raise XenError(Errno.EINVAL, f"upper half of DR{number}")
        elif number == 6:
            value = value & _DR6_WRITABLE | _DR6_FIXED
        else:
            if value & _DR7_GENERAL_DETECT:
                raise XenError(Errno.EPERM, "general detect in DR7")
            kinds = [value >> 16 + 4 * breakpoint_number & 3 for breakpoint_number in range(4)]
            if _IO in kinds and not cr4 & CR4_DE:
                raise XenError(Errno.EPERM, "I/O breakpoint without CR4.DE")
            value = value & ~_DR7_RESERVED | _DR7_FIXED
        self.registers[number] = value


def _resolve(number: int, cr4: int) -> int:
    """The register behind a number; DR4 and DR5 do not exist if CR4.DE says so. ENODEV."""
    if number in (4, 5):
        if cr4 & CR4_DE:
            raise XenError(Errno.ENODEV, f"DR{number} with CR4.DE set")
        return number + 2
    if number > 7:
        raise XenError(Errno.ENODEV, f"no debug register {number}")
    return number
