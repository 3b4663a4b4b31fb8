# SPDX-License-Identifier: GPL-2.0-only
"""What is known of a domain at the moment it crashed, as plain data; `observe/crash.py` prints it."""

from dataclasses import dataclass

from pyhv.address import MASK32, MASK64, mfn_to_cr3
from pyhv.cpu import vmcb as v
from pyhv.cpu.exits import ExitKind
from pyhv.errors import XenError
from pyhv.traps.guestcpu import GuestCpu
from pyhv.traps.privileged import fetch

STACK_WORDS = 64


@dataclass(frozen=True, slots=True)
class CrashReport:
    """State of the crashed vCPU. `stack` are the words of `width` bits from the stack pointer upwards as far
    as readable; `registers` have the names of that width; `pc` and `sp` are linear addresses; `last_exits`
    are (kind, detail, RIP), newest last; `time_ns` is machine time."""

    domid: int
    name: str
    vcpu: int
    cause: str
    time_ns: int
    kernel_mode: bool
    width: int
    pc: int
    sp: int
    registers: dict[str, int]
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
        registers=_wide_registers(cpu) if width == 64 else _narrow_registers(cpu),
        code=fetch(cpu, pc),
        stack=tuple(stack),
        last_exits=last_exits,
    )


def _wide_registers(cpu: GuestCpu) -> dict[str, int]:
    vmcb = cpu.vmcb
    q = vmcb.q
    return dict(zip(v.GENERAL_NAMES, q[0:16], strict=True)) | {
        "rip": q[v.RIP],
        "rflags": cpu.engine.rflags(),
        "cs": vmcb.selector(v.CS),
        "ss": vmcb.selector(v.SS),
        "cr2": q[v.CR + 2],
        "cr3": mfn_to_cr3(cpu.vcpu.kernel_l4),
        "fs_base": q[v.SEG_BASE[v.FS]],
        "gs_base": q[v.SEG_BASE[v.GS]],
    }


def _narrow_registers(cpu: GuestCpu) -> dict[str, int]:
    vmcb = cpu.vmcb
    q = vmcb.q
    registers = {f"e{name[1:]}": q[index] & MASK32 for index, name in enumerate(v.GENERAL_NAMES[:8])}
    registers |= {"eip": q[v.RIP] & MASK32, "eflags": cpu.engine.rflags() & MASK32}
    for name, segment in (("cs", v.CS), ("ss", v.SS), ("ds", v.DS), ("es", v.ES), ("fs", v.FS), ("gs", v.GS)):
        registers[name] = vmcb.selector(segment)
    return registers | {"cr2": q[v.CR + 2] & MASK32, "cr3": mfn_to_cr3(cpu.vcpu.kernel_l4, 32)}
