# SPDX-License-Identifier: GPL-2.0-only
"""Call gates of a 32-bit guest: far CALL and JMP through them, done by the hypervisor.

A processor in long mode takes gates to 64-bit code only, so a 32-bit gate cannot be left to it. It is kept
disarmed instead: the DPL is 0 in the table, the one the guest wanted is in the RPL of the gate's target
selector (`mmu/descriptors.py`). Whoever goes through one gets #GP with the gate's selector as error code, and
that is where this module comes in. It does what the instruction would have done on a 32-bit processor
(Intel SDM volume 3, section 5.8, and CALL in volume 2), as far as Xen does it:

    CALL inwards      kernel_ss:kernel_sp    low  eip  cs  parameters  esp  ss  high
    CALL otherwise    the current stack      low  eip  cs  high
    JMP               no stack               only to code of the same privilege, or conforming code

The way inwards is known for the kernel's ring only. What is not a call gate, or not allowed, stays the #GP
that it was. 64-bit guests have no such emulation: their gates always fault.
"""

import struct
from typing import Final, NoReturn

from pyhv.abi.x86 import PF_U, PF_W, Vector
from pyhv.address import COMPAT_VIRT_START, MASK32
from pyhv.cpu import vmcb as v
from pyhv.cpu.decode import FarTransfer, far_transfer
from pyhv.errors import XenError
from pyhv.mmu import descriptors
from pyhv.mmu.descriptors import Segment
from pyhv.traps.compat import CompatCpu
from pyhv.traps.privileged import fetch

_CALL_GATE: Final = 0xC00
_TYPE_AND_S: Final = 0x1F00
_WORD: Final = 4


class _Fault(Exception):
    """The transfer ends with an exception of the guest."""

    def __init__(self, vector: int, error: int, address: int | None = None) -> None:
        self.vector = vector
        self.error = error
        self.address = address


class _Transfer:
    """One far transfer that met #GP(`selector`); nothing of the processor changes until it has succeeded."""

    def __init__(self, cpu: CompatCpu, selector: int) -> None:
        self._cpu = cpu
        self._selector = selector
        self._cpl = cpu.vmcb.cpl

    def _refuse(self) -> NoReturn:
        """The #GP that the processor raised."""
        raise _Fault(Vector.GP, self._selector)

    def perform(self) -> None:
        """Check everything, push the frame, go. `_Fault` otherwise."""
        cpu, selector = self._cpu, self._selector
        gate = self._gate()
        dpl = gate >> 16 & 3
        if dpl < self._cpl:
            self._refuse()
        if not gate & descriptors.PRESENT:
            raise _Fault(Vector.NP, selector)
        instruction = self._instruction()
        used = self._selector_used(instruction)
        if used & ~3 != selector or dpl < used & 3:
            self._refuse()
        target = gate >> 16 & 0xFFFC
        value = self._target(target, instruction.jump)
        code = descriptors.decode(value)
        offset = gate & 0xFFFF | gate >> 32 & 0xFFFF_0000
        if offset > code.limit:
            raise _Fault(Vector.GP, 0)
        ring = value >> 45 & 3
        back = cpu.vmcb.rip + instruction.length & MASK32
        if instruction.jump:
            cpu.far_jump(target | self._cpl, code, offset)
        elif ring < self._cpl:
            self._call_inwards(target, code, offset, back, ring, gate >> 32 & 0x1F)
        else:
            self._call(target, code, offset, back)

    def _gate(self) -> int:
        """The gate, as the table has it: a call gate whose DPL field says 0."""
        selector, vcpu = self._selector, self._cpu.vcpu
        if not selector & 4 and selector >> 3 >= vcpu.descriptors.gdt_entries:
            self._refuse()
        value = self._cpu.descriptor(selector)
        if value is None or value >> 32 & _TYPE_AND_S != _CALL_GATE or value & descriptors.DPL:
            self._refuse()
        return value

    def _instruction(self) -> FarTransfer:
        """The instruction at CS:EIP."""
        cpu = self._cpu
        width = 32 if cpu.vmcb.d[v.HFLAGS] & v.HF_CS32 else 16
        found = far_transfer(fetch(cpu, cpu.linear_rip()), width)
        if found is None:
            self._refuse()
        return found

    def _selector_used(self, instruction: FarTransfer) -> int:
        """The selector that the instruction names; it may have changed in memory since it was executed."""
        pointer = instruction.pointer
        if pointer is None:
            return instruction.selector
        q, d = self._cpu.vmcb.q, self._cpu.vmcb.d
        offset = pointer.displacement + instruction.offset_size
        if pointer.base is not None:
            offset += q[pointer.base]
        if pointer.scaled is not None:
            offset += q[pointer.scaled] * pointer.scale
        segment = v.DS if pointer.segment is None else pointer.segment
        offset &= instruction.address_mask
        if segment != v.CS and d[v.SEG_SEL[segment]] & 0xFFFC == 0:
            self._refuse()
        hidden = Segment(q[v.SEG_BASE[segment]], d[v.SEG_LIMIT[segment]], d[v.SEG_FLAGS[segment]])
        if not hidden.holds(offset, 2):
            self._refuse()
        return self._read(hidden.base + offset & MASK32, 2)

    def _target(self, selector: int, jump: bool) -> int:
        """The descriptor of the code segment that the gate leads to."""
        value = self._cpu.descriptor(selector) if selector else None
        code = descriptors.S | descriptors.CODE
        if value is None or value & code != code:
            raise _Fault(Vector.GP, selector)
        ring = value >> 45 & 3
        inwards_too = not jump or value & descriptors.CONFORMING
        if ring > self._cpl or (ring < self._cpl and not inwards_too):
            raise _Fault(Vector.GP, selector)
        if not value & descriptors.PRESENT:
            raise _Fault(Vector.NP, selector)
        return value

    # -- stacks --------------------------------------------------------------------------------------------

    def _call(self, target: int, code: Segment, offset: int, back: int) -> None:
        """A call without change of privilege."""
        cpu = self._cpu
        q, d = cpu.vmcb.q, cpu.vmcb.d
        stack = Segment(q[v.SEG_BASE[v.SS]], d[v.SEG_LIMIT[v.SS]], d[v.SEG_FLAGS[v.SS]])
        esp = q[v.RSP] & MASK32
        if not stack.holds(esp - 2 * _WORD & MASK32, 2 * _WORD):
            raise _Fault(Vector.SS, 0)
        self._push(stack, esp, [back, d[v.SEG_SEL[v.CS]] & 0xFFFF])
        cpu.far_jump(target | self._cpl, code, offset)
        q[v.RSP] = esp - 2 * _WORD & MASK32

    def _call_inwards(
        self, target: int, code: Segment, offset: int, back: int, ring: int, parameters: int
    ) -> None:
        """A call into the kernel, which takes `parameters` words of the caller's stack along."""
        cpu = self._cpu
        if ring != cpu.kernel_ring:
            self._refuse()
        q, d, vcpu = cpu.vmcb.q, cpu.vmcb.d, cpu.vcpu
        selector, esp = vcpu.kernel_stack.ss, vcpu.kernel_stack.sp & MASK32
        stack = self._kernel_stack(selector, ring)
        size = (4 + parameters) * _WORD
        if not stack.holds(esp - size & MASK32, size):
            raise _Fault(Vector.SS, selector & ~3)
        outer = Segment(q[v.SEG_BASE[v.SS]], d[v.SEG_LIMIT[v.SS]], d[v.SEG_FLAGS[v.SS]])
        outer_esp, outer_ss = q[v.RSP] & MASK32, d[v.SEG_SEL[v.SS]] & 0xFFFF
        taken: list[int] = []
        if parameters:
            length = parameters * _WORD
            if not outer.holds(outer_esp, length):
                self._refuse()
            at = outer.base + outer_esp & MASK32
            if at + length > COMPAT_VIRT_START:
                self._refuse()
            taken = [self._read(at + _WORD * word, _WORD) for word in range(parameters)]
        caller = d[v.SEG_SEL[v.CS]] & 0xFFFF
        self._push(stack, esp, [back, caller, *taken, outer_esp, outer_ss])
        cpu.far_jump(target | ring, code, offset, (selector, stack))
        q[v.RSP] = esp - size & MASK32

    def _kernel_stack(self, selector: int, ring: int) -> Segment:
        value = self._cpu.descriptor(selector) if selector & ~3 else None
        writable = descriptors.S | descriptors.WRITABLE_DATA
        if (
            value is None
            or selector & 3 != ring
            or value >> 45 & 3 != ring
            or value & (writable | descriptors.CODE) != writable
        ):
            raise _Fault(Vector.TS, selector & ~3)
        if not value & descriptors.PRESENT:
            raise _Fault(Vector.SS, selector & ~3)
        return descriptors.decode(value | descriptors.ACCESSED)

    # -- memory --------------------------------------------------------------------------------------------

    def _read(self, address: int, length: int) -> int:
        try:
            return int.from_bytes(self._cpu.memory.read(address, length), "little")
        except XenError as refusal:
            raise self._page_fault(address, length, write=False) from refusal

    def _push(self, stack: Segment, esp: int, words: list[int]) -> None:
        """Push `words`, the last one first, as far as the stack goes."""
        top = stack.base + esp & MASK32
        if not len(words) * _WORD <= top <= COMPAT_VIRT_START:
            self._refuse()
        memory = self._cpu.memory
        for number, word in enumerate(reversed(words), 1):
            address = top - number * _WORD
            try:
                memory.write(address, struct.pack("<I", word))
            except XenError as refusal:
                raise self._page_fault(address, _WORD, write=True) from refusal

    def _page_fault(self, address: int, length: int, *, write: bool) -> _Fault:
        """#PF at the first byte of `length` that cannot be reached; as of a missing page, as Xen has it."""
        memory = self._cpu.memory
        reach = memory.for_write if write else memory.for_read
        for at in range(address, address + length):
            try:
                reach(at)
            except XenError:
                address = at
                break
        error = PF_W if write else 0
        return _Fault(Vector.PF, error | (0 if self._cpl == self._cpu.kernel_ring else PF_U), address)


def transfer(cpu: CompatCpu, selector: int) -> bool:
    """#GP(`selector`) in a 32-bit guest: go through the call gate that it names.

    False if that cannot be: then the guest has got the exception that says so. GuestCrash without a handler.
    """
    try:
        _Transfer(cpu, selector & 0xFFFF).perform()
    except _Fault as fault:
        if fault.address is None:
            cpu.raise_exception(fault.vector, fault.error)
        else:
            cpu.raise_page_fault(fault.address, fault.error)
        return False
    return True
