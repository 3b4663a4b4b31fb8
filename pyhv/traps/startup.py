# SPDX-License-Identifier: GPL-2.0-only
"""The registers with which a vCPU starts (public header `xen.h`, "start-of-day memory layout").

They are those that the builder or VCPUOP_initialise names. Its code and stack segments are flat at first;
those that are named instead, and data segments, are loaded from the guest's descriptors when the vCPU is
first put on its engine (`GuestCpu.load`).
"""

from dataclasses import replace

from pyhv.abi.x86 import (
    FLAT_RING1_CS,
    FLAT_RING1_DS,
    FLAT_RING3_CS64,
    FLAT_RING3_DS,
    RESERVED_DESCRIPTORS_COMPAT,
)
from pyhv.cpu.registers import Registers, SegmentRegister
from pyhv.domain.vcpu import Vcpu
from pyhv.mmu.descriptors import decode
from pyhv.traps.guestcpu import CODE64_FLAGS, DATA_FLAGS, FLAT_LIMIT, IRET_FLAGS


def boot_registers(entry: int, start_info: int, stack_top: int, width: int = 64) -> Registers:
    """What the domain builder gives vCPU 0 of a guest of `width` bits; what is not named is 0.

    A 64-bit kernel begins with null data segments, a 32-bit one with flat ones of ring 1.
    """
    registers = Registers(rip=entry, rsi=start_info, rsp=stack_top, rflags=0x202)
    if width == 64:
        registers.cs.selector, registers.ss.selector = FLAT_RING3_CS64, FLAT_RING3_DS
    else:
        for segment in registers.segments:
            segment.selector = FLAT_RING1_DS
        registers.cs.selector = FLAT_RING1_CS
    return registers


def first_state(wanted: Registers, width: int = 64) -> Registers:
    """What a vCPU holds before the selectors of `wanted` are loaded: flags as an iret hypercall may set them,
    null data segments with the selectors and bases that are wanted."""
    if width == 64:
        cs = SegmentRegister(FLAT_RING3_CS64, 0, FLAT_LIMIT, CODE64_FLAGS)
        ss = SegmentRegister(FLAT_RING3_DS, 0, FLAT_LIMIT, DATA_FLAGS)
    else:
        cs = SegmentRegister(FLAT_RING1_CS, *decode(RESERVED_DESCRIPTORS_COMPAT[FLAT_RING1_CS & ~3]))
        ss = SegmentRegister(FLAT_RING1_DS, *decode(RESERVED_DESCRIPTORS_COMPAT[FLAT_RING1_DS & ~3]))
    return replace(
        wanted,
        rflags=wanted.rflags & IRET_FLAGS | 0x202,
        cpl=3 if width == 64 else 1,
        cs=cs,
        ss=ss,
        ds=SegmentRegister(wanted.ds.selector, wanted.ds.base),
        es=SegmentRegister(wanted.es.selector, wanted.es.base),
        fs=SegmentRegister(wanted.fs.selector, wanted.fs.base),
        gs=SegmentRegister(wanted.gs.selector, wanted.gs.base),
    )


def prepare_vcpu(vcpu: Vcpu) -> None:
    """Make the registers with which a vCPU is to start those that it has."""
    assert vcpu.initial is not None
    vcpu.context.registers = first_state(vcpu.initial, vcpu.width)
