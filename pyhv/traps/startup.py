# SPDX-License-Identifier: GPL-2.0-only
"""The registers with which a vCPU starts (public header `xen.h`, "start-of-day memory layout").

A vCPU's first state is the processor's pristine one with the general registers, flags and bases that the
builder or VCPUOP_initialise names. Its segments are flat at first; those that are named instead are loaded
from the guest's descriptors when the vCPU is first put on its engine (`GuestCpu.load`).
"""

from pyhv.abi.x86 import (
    FLAT_RING1_CS,
    FLAT_RING1_DS,
    FLAT_RING3_CS64,
    FLAT_RING3_DS,
    RESERVED_DESCRIPTORS_COMPAT,
)
from pyhv.cpu import vmcb as v
from pyhv.cpu.vmcb import Vmcb
from pyhv.domain.domain import Domain
from pyhv.mmu.descriptors import decode
from pyhv.traps.guestcpu import CODE64_FLAGS, DATA_FLAGS, FLAT_LIMIT, IRET_FLAGS


def boot_registers(entry: int, start_info: int, stack_top: int, width: int = 64) -> dict[str, int]:
    """What the domain builder gives vCPU 0 of a guest of `width` bits; what is not named is 0.

    A 64-bit kernel begins with null data segments, a 32-bit one with flat ones of ring 1.
    """
    registers = {"rip": entry, "rsi": start_info, "rsp": stack_top, "rflags": 0x202}
    if width == 64:
        return registers | {"cs": FLAT_RING3_CS64, "ss": FLAT_RING3_DS}
    data = dict.fromkeys(("ss", "ds", "es", "fs", "gs"), FLAT_RING1_DS)
    return registers | {"cs": FLAT_RING1_CS} | data


def first_state(pristine: bytes, registers: dict[str, int], width: int = 64) -> bytes:
    """A VMCB image: `pristine` with `registers` (names of `cpu_user_regs`, `fs_base`, `gs_base`) loaded."""
    block = bytearray(pristine)
    vmcb = Vmcb(memoryview(block))
    for index, name in enumerate(v.GENERAL_NAMES):
        vmcb.q[index] = registers.get(name, 0)
    vmcb.rip = registers.get("rip", 0)
    vmcb.set_rflags(registers.get("rflags", 0) & IRET_FLAGS | 0x202)
    if width == 64:
        vmcb.d[v.HFLAGS] = v.HF_BASE64 | 3
        vmcb.set_segment(v.CS, FLAT_RING3_CS64, 0, FLAT_LIMIT, CODE64_FLAGS)
        vmcb.set_segment(v.SS, FLAT_RING3_DS, 0, FLAT_LIMIT, DATA_FLAGS)
    else:
        vmcb.d[v.HFLAGS] = v.HF_BASE64 & ~v.HF_CS64 | 1
        vmcb.set_segment(v.CS, FLAT_RING1_CS, *decode(RESERVED_DESCRIPTORS_COMPAT[FLAT_RING1_CS & ~3]))
        vmcb.set_segment(v.SS, FLAT_RING1_DS, *decode(RESERVED_DESCRIPTORS_COMPAT[FLAT_RING1_DS & ~3]))
    for segment, name in ((v.DS, "ds"), (v.ES, "es"), (v.FS, "fs"), (v.GS, "gs")):
        vmcb.set_segment(segment, registers.get(name, 0), registers.get(f"{name}_base", 0), 0, 0)
    return bytes(block)


def prepare_vcpu(domain: Domain, number: int) -> None:
    """Make the initial registers of a vCPU its saved state."""
    vcpu = domain.vcpus[number]
    vcpu.registers = first_state(domain.pristine, vcpu.initial_registers, domain.width)
