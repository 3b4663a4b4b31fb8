# SPDX-License-Identifier: GPL-2.0-only
"""The registers with which a vCPU starts (public header `xen.h`, "start-of-day memory layout").

A vCPU's first state is the processor's pristine one with the general registers, flags, segments and bases
that the builder or VCPUOP_initialise names.
"""

from pyhv.abi.x86 import FLAT_RING3_CS64, FLAT_RING3_DS
from pyhv.cpu import vmcb as v
from pyhv.cpu.vmcb import Vmcb
from pyhv.traps.guestcpu import CODE64_FLAGS, DATA_FLAGS, FLAT_LIMIT


def boot_registers(entry: int, start_info: int, stack_top: int) -> dict[str, int]:
    """What the domain builder gives vCPU 0."""
    return {"rip": entry, "rsi": start_info, "rsp": stack_top, "rflags": 0x202}


def first_state(pristine: bytes, registers: dict[str, int]) -> bytes:
    """A VMCB image: `pristine` with `registers` (names of `cpu_user_regs`, `fs_base`, `gs_base`) loaded."""
    block = bytearray(pristine)
    vmcb = Vmcb(memoryview(block))
    for index, name in enumerate(v.GENERAL_NAMES):
        vmcb.q[index] = registers.get(name, 0)
    vmcb.rip = registers.get("rip", 0)
    vmcb.d[v.HFLAGS] = v.HF_BASE64 | 3
    vmcb.set_rflags(registers.get("rflags", 0) & 0x3D4DD5 | 0x202)
    vmcb.set_segment(v.CS, FLAT_RING3_CS64, 0, FLAT_LIMIT, CODE64_FLAGS)
    vmcb.set_segment(v.SS, FLAT_RING3_DS, 0, FLAT_LIMIT, DATA_FLAGS)
    for segment, name in ((v.DS, "ds"), (v.ES, "es"), (v.FS, "fs"), (v.GS, "gs")):
        vmcb.set_segment(segment, registers.get(name, 0), registers.get(f"{name}_base", 0), 0, 0)
    return bytes(block)
