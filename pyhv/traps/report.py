# SPDX-License-Identifier: GPL-2.0-only
"""What is known of a domain at the moment it crashed, as plain data; `observe/crash.py` prints it."""

from typing import Final

from pyhv.address import MASK32, MASK64, mfn_to_cr3
from pyhv.cpu import vmcb as v
from pyhv.cpu.exits import ExitKind
from pyhv.cpu.registers import Registers
from pyhv.errors import XenError
from pyhv.frozen import frozen
from pyhv.traps.guestcpu import GuestCpu
from pyhv.traps.privileged import fetch

STACK_WORDS: Final = 64


@frozen
class CrashReport:
    """State of the crashed vCPU. `stack` are the words of `width` bits from the stack pointer upwards as far
    as readable; `cr3` is the guest's kernel's; `pc` and `sp` are linear addresses; `last_exits` are (kind,
    detail, RIP), newest last; `time_ns` is machine time."""

    domid: int
    name: str
    vcpu: int
    cause: str
    time_ns: int
    kernel_mode: bool
    width: int
    pc: int
    sp: int
    registers: Registers
    cr3: int
    code: bytes
    stack: tuple[int, ...]
    last_exits: tuple[tuple[ExitKind, int, int], ...]


def capture(
    cpu: GuestCpu, cause: str, time_ns: int, last_exits: tuple[tuple[ExitKind, int, int], ...]
) -> CrashReport:
    """Take the report of the vCPU on the processor."""
    vcpu = cpu.vcpu
    width = vcpu.width
    q = cpu.vmcb.q
    pc = cpu.linear_rip()
    sp = q[v.RSP] if width == 64 else (q[v.SEG_BASE[v.SS]] + q[v.RSP]) & MASK32
    stack: list[int] = []
    try:
        for at in range(STACK_WORDS):
            word = (sp + width // 8 * at) & (MASK64 if width == 64 else MASK32)
            stack += cpu.memory.read_words(word, 1)
    except XenError:
        pass  # the stack ends where its mapping ends
    return CrashReport(
        domid=vcpu.domid,
        name=cpu.domain.name,
        vcpu=vcpu.number,
        cause=cause,
        time_ns=time_ns,
        kernel_mode=vcpu.in_kernel,
        width=width,
        pc=pc,
        sp=sp,
        registers=vcpu.context.registers,
        cr3=mfn_to_cr3(vcpu.paging.kernel_l4, width),
        code=fetch(cpu, pc),
        stack=tuple(stack),
        last_exits=last_exits,
    )
