# SPDX-License-Identifier: GPL-2.0-only
"""#PF: whose it is. The guest's own, unless one of these is behind it.

    a kernel that came back to itself in ring 3        put it back into ring 1 (merged arrangement)
    a kernel's store into one of its L1 tables         done for it, if it has the assist (`ptwr.py`)
    a process where only its own table maps            go on in the split arrangement
    a descriptor of the LDT                            bring its page in, or blame the guest's LDT
    a fetch for an instruction that is yet to come     go on to that instruction, one at a time

Error codes and addresses are those of the Intel SDM, volume 3, section 4.7, but for the U bit: it says user
mode, which in a 64-bit guest the processor does not know.
"""

from typing import Final

from pyhv.abi.numbers import Assist
from pyhv.abi.x86 import PF_I, PF_P, PF_RSVD, PF_U, PF_W, PTE_NX, PTE_RW, PTE_US, Vector
from pyhv.address import (
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
    MASK32,
    MASK64,
    PAGE_MASK,
    PAGE_SIZE,
    is_canonical,
)
from pyhv.cpu import decode
from pyhv.cpu import vmcb as v
from pyhv.mmu.frames import L1
from pyhv.mmu.memory import walk
from pyhv.mmu.paging import LDT_AREA, VCPU_AREA_SIZE, DomainArea
from pyhv.traps import privileged
from pyhv.traps.guestcpu import GuestCpu
from pyhv.traps.ptwr import emulate_store

_HARDWARE: Final = PF_P | PF_W | PF_RSVD | PF_I


def page_fault(cpu: GuestCpu) -> bool:
    """Handle #PF of a 64-bit guest; True if an instruction has been done for it."""
    q, vcpu = cpu.vmcb.q, cpu.vcpu
    address, error = q[v.CR + 2], cpu.vmcb.d[v.ERROR_CODE] & _HARDWARE
    if vcpu.in_kernel:
        if cpu.merged and cpu.vmcb.cpl == 3:
            cpu.vmcb.cpl = 1  # the kernel returned to itself with a ring-3 selector: put it back
            return False
        if error & (PF_P | PF_W | PF_RSVD) == PF_P | PF_W and _writable_page_table(cpu, address):
            return True
    elif cpu.merged and not address < HYPERVISOR_VIRT_START:
        found = walk(cpu.domain.ram, vcpu.paging.user_l4, address) if address >= HYPERVISOR_VIRT_END else None
        if found is not None and _is_allowed(found.flags, error):
            cpu.split_until_mode_change()
            return False
        if address >= HYPERVISOR_VIRT_END:
            error = error & ~PF_P | (PF_P if found is not None else 0)
    if HYPERVISOR_VIRT_START <= address < HYPERVISOR_VIRT_END and _ldt_fault(cpu, address, error):
        return False
    if error & PF_I and _comes_later(cpu, address):
        return False
    cpu.raise_page_fault(address, error if vcpu.in_kernel else error | PF_U)
    return False


def compat_page_fault(cpu: GuestCpu) -> bool:
    """#PF of a 32-bit guest: its ring 2 reaches what ring 1 does, but to Xen it is user mode."""
    address, error = cpu.vmcb.q[v.CR + 2], cpu.vmcb.d[v.ERROR_CODE] & _HARDWARE
    in_kernel = cpu.vcpu.in_kernel
    stored = in_kernel and error & (PF_P | PF_W | PF_RSVD) == PF_P | PF_W
    if stored and _writable_page_table(cpu, address):
        return True
    if address > MASK32 and _ldt_fault(cpu, address, error):
        return False
    if error & PF_I and _comes_later(cpu, address):
        return False
    cpu.raise_page_fault(address & MASK32, error if in_kernel else error | PF_U)
    return False


def _comes_later(cpu: GuestCpu, address: int) -> bool:
    """Whether a fetch has faulted for an instruction that the guest has not come to yet: then it goes there.

    The emulator translates a block before it executes it, and reports what it meets behind the end of a page
    at the block's start. What comes before that must be executed, and may fault itself.
    """
    here = cpu.linear_rip()
    if address & PAGE_MASK or not 0 < address - here < PAGE_SIZE:
        return False
    width = 64 if cpu.vmcb.d[v.HFLAGS] & v.HF_CS64 else 32
    before = decode.whole(privileged.fetch(cpu, here, address - here), width)
    if before:
        cpu.vcpu.debug.approach = here, here + before
        cpu.rearrange = True
    return before > 0


def _is_allowed(flags: int, error: int) -> bool:
    """Whether a user access of the kind in `error` is permitted by a walk's `flags`."""
    if not flags & PTE_US or error & PF_RSVD:
        return False
    if error & PF_W and not flags & PTE_RW:
        return False
    return not (error & PF_I and flags & PTE_NX)


def _ldt_fault(cpu: GuestCpu, address: int, error: int) -> bool:
    """A descriptor access to the LDT window: bring the page in, or blame the guest's LDT."""
    vcpu = cpu.vcpu
    offset = address - DomainArea.address(vcpu.number) - LDT_AREA
    if not 0 <= offset < VCPU_AREA_SIZE - LDT_AREA or offset >= vcpu.descriptors.ldt_entries * 8:
        return False
    if error & PF_P:
        return False  # the page is there: no descriptor access, but the guest where it may not go
    if cpu.ldt_page(offset >> 12) is not None:
        return True
    target = (vcpu.descriptors.ldt_base + offset) & (MASK64 if cpu.domain.width == 64 else MASK32)
    if not is_canonical(target):
        cpu.raise_exception(Vector.GP, offset & 0xFFF8 | 4)
    else:
        cpu.raise_page_fault(target, error | (0 if vcpu.in_kernel else PF_U))
    return True


def _writable_page_table(cpu: GuestCpu, address: int) -> bool:
    """A store that faulted at `address`: done, if it is one into a page table that the assist covers."""
    domain = cpu.domain
    if Assist.WRITABLE_PAGETABLES not in domain.assists.enabled:
        return False
    found = walk(domain.ram, cpu.vcpu.paging.kernel_l4, address, domain.width)
    if found is None or found.flags & PTE_RW:
        return False
    frames = domain.physical.frames
    mfn = found.address >> 12
    if frames.type[mfn] != L1 or not frames.type_count[mfn] or frames.owner[mfn] != domain.domid:
        return False
    width = 64 if cpu.vmcb.d[v.HFLAGS] & v.HF_CS64 else 32
    store = decode.store(privileged.fetch(cpu, cpu.linear_rip()), width)
    if store is None:
        return False
    return emulate_store(cpu, domain.tables, store, address, found.address & ~7)
