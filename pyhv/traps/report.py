# SPDX-License-Identifier: GPL-2.0-only
"""What is known of a domain at the moment it crashed, as plain data; `observe/crash.py` prints it."""

from dataclasses import dataclass

from pyhv.cpu import vmcb as v
from pyhv.cpu.exits import ExitKind
from pyhv.errors import XenError
from pyhv.traps.guestcpu import GuestCpu
from pyhv.traps.privileged import fetch

STACK_WORDS = 64


@dataclass(frozen=True, slots=True)
class CrashReport:
    """State of the crashed vCPU. `stack` are the 64-bit words from RSP upwards as far as readable;
    `last_exits` are (kind, detail, RIP), newest last; `time_ns` is machine time."""

    domid: int
    name: str
    vcpu: int
    cause: str
    time_ns: int
    kernel_mode: bool
    registers: dict[str, int]
    code: bytes
    stack: tuple[int, ...]
    last_exits: tuple[tuple[ExitKind, int, int], ...]


def capture(
    cpu: GuestCpu, cause: str, time_ns: int, last_exits: tuple[tuple[ExitKind, int, int], ...]
) -> CrashReport:
    """Take the report of the vCPU on the processor."""
    vcpu, vmcb = cpu.vcpu, cpu.vmcb
    q = vmcb.q
    registers = dict(zip(v.GENERAL_NAMES, q[0:16], strict=True))
    registers |= {
        "rip": q[v.RIP],
        "rflags": cpu.engine.rflags(),
        "cs": vmcb.selector(v.CS),
        "ss": vmcb.selector(v.SS),
        "cr2": q[v.CR + 2],
        "cr3": vcpu.kernel_l4 << 12,
        "fs_base": q[v.SEG_BASE[v.FS]],
        "gs_base": q[v.SEG_BASE[v.GS]],
    }
    stack: list[int] = []
    try:
        for at in range(STACK_WORDS):
            stack.append(cpu.memory.read_u64((q[v.RSP] + 8 * at) & (1 << 64) - 1))
    except XenError:
        pass  # the stack ends where its mapping ends
    return CrashReport(
        domid=vcpu.domid,
        name=vcpu.domain.name,
        vcpu=vcpu.number,
        cause=cause,
        time_ns=time_ns,
        kernel_mode=vcpu.in_kernel,
        registers=registers,
        code=fetch(cpu, q[v.RIP]),
        stack=tuple(stack),
        last_exits=last_exits,
    )
