# SPDX-License-Identifier: GPL-2.0-only
"""Data segment registers: loading them anew when a vCPU comes back to the processor; the failsafe callback.

Xen reloads DS, ES, FS and GS whenever it switches to a vCPU, from the descriptor tables as they are by then.
A selector that can no longer be loaded becomes null, and the guest kernel is told by the *failsafe callback*,
whose frame is an ordinary bounce frame with the lost selectors in it:

    64 bits   low   rcx  r11  ds  es  fs  gs  rip  cs | mask << 32  rflags  rsp  ss      high
    32 bits   low             ds  es  fs  gs  eip  cs | mask << 16  eflags  [esp  ss]    high

(without rcx and r11, and in 4-byte words, for a 32-bit guest).
Here nothing ever leaves the segment registers, so loading them anew can only matter after a descriptor has
changed: `Vcpu.descriptors_changed` says so. A 64-bit guest's GS belongs to user mode as a selector; a base
comes with it for user mode only. (Public header `callback.h`; Intel SDM volume 3, section 5.)
"""

from typing import Final

from pyhv.cpu import vmcb as v
from pyhv.mmu import descriptors
from pyhv.mmu.descriptors import Segment
from pyhv.traps.guestcpu import GuestCpu

_NULL: Final = Segment(0, 0, 0)
_SEGMENTS: Final = (v.DS, v.ES, v.FS, v.GS)


def data_segment(cpu: GuestCpu, selector: int) -> Segment | None:
    """The hidden part for loading DS, ES, FS or GS in the guest's mode; None if that would fault."""
    if selector < 4:
        return _NULL
    value = cpu.descriptor(selector)
    ring = cpu.kernel_ring if cpu.vcpu.in_kernel else 3
    if value is None or not descriptors.is_loadable_data(value, max(selector & 3, ring)):
        return None
    return descriptors.decode(value | descriptors.ACCESSED)


def load_user_gs(cpu: GuestCpu, selector: int) -> bool:
    """Load user mode's GS: the selector, and the base that user mode gets. Null, and False, if it faults."""
    segment = data_segment(cpu, selector)
    loaded = segment is not None
    if segment is None:
        selector, segment = 0, _NULL
    q = cpu.vmcb.q
    base = q[v.SEG_BASE[v.GS]]
    if cpu.vcpu.in_kernel:
        cpu.vcpu.other_gs_base = segment.base
    else:
        base = segment.base
    cpu.vmcb.set_segment(v.GS, selector, base, segment.limit, segment.flags)
    return loaded


def reload(cpu: GuestCpu) -> None:
    """Load the data segments of the vCPU anew; if one faults, enter the failsafe callback. GuestCrash."""
    vcpu, vmcb = cpu.vcpu, cpu.vmcb
    vcpu.descriptors.changed = False
    selectors = tuple(vmcb.selector(segment) for segment in _SEGMENTS)
    complete = True
    own_gs = cpu.domain.width == 64
    for segment, selector in zip((v.DS, v.ES, v.FS, v.GS)[: 4 - own_gs], selectors, strict=False):
        if selector < 4:
            continue  # a null selector keeps the base that was set by itself
        found = data_segment(cpu, selector)
        if found is None:
            complete = False
            vmcb.set_segment(segment, 0, *_NULL)
        else:
            vmcb.set_segment(segment, selector, *found)
    if own_gs and selectors[3] >= 4:
        complete &= load_user_gs(cpu, selectors[3])
    if not complete:
        cpu.enter_failsafe(selectors)
