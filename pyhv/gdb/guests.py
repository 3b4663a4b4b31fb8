# SPDX-License-Identifier: GPL-2.0-only
"""A machine's guests as gdb sees them: processes by domid, whose threads are vCPUs.

Registers and memory are read and written here, of guests that stand still. Memory is what the vCPU's own page
tables show, and, while it is in user mode, what its kernel's tables show besides. What would break the
machine's isolation cannot be written: frames that are page tables or descriptor tables.
"""

from collections.abc import Iterator
from typing import Final

from pyhv.abi.x86 import PTE_MFN_MASK
from pyhv.address import MASK64, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from pyhv.cpu.registers import Registers
from pyhv.debugger import VcpuId
from pyhv.domain.domain import Domain
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import ConfigError, PyhvError
from pyhv.gdb.target import TARGETS, Target, TargetRegister
from pyhv.machine import Machine
from pyhv.mmu.counts import WRITABLE
from pyhv.mmu.memory import walk
from pyhv.resident import Resident

_FREE_TYPES: Final = (0, WRITABLE)
"""What is not of a type that the hypervisor has checked, and relies on."""


class RequestRefused(PyhvError):
    """What gdb has asked for cannot be; the message says why."""


class Guests:
    """Access to the guests of a machine that stands still."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def domids(self) -> list[int]:
        """Of all guests that have not ended."""
        return self._machine.residents.domids()

    def threads(self, domid: int) -> list[VcpuId]:
        """The vCPUs of a guest that have registers."""
        resident = self._machine.residents.get(domid)
        if resident is None:
            return []
        return [vcpu.id for vcpu in resident.domain.vcpus if not vcpu.context.empty]

    def target(self, domid: int) -> Target:
        """What gdb is told of a guest's processor. RequestRefused."""
        return TARGETS[self._resident(domid).domain.width]

    def name(self, domid: int) -> str:
        """A guest's name. RequestRefused."""
        return self._resident(domid).domain.name

    def describe(self, vcpu: VcpuId) -> str:
        """What a vCPU is and does, in a few words. RequestRefused."""
        found = self.vcpu(vcpu)
        if not found.online:
            state = "offline"
        elif found.blocked:
            state = "blocked"
        else:
            state = "running" if self._machine.services.is_running(found) else "runnable"
        return (
            f"{self.name(vcpu[0])} {found.name}: {state}, in {'kernel' if found.in_kernel else 'user'} mode"
        )

    def _resident(self, domid: int) -> Resident:
        resident = self._machine.residents.get(domid)
        if resident is None:
            raise RequestRefused(f"there is no guest {domid}")
        return resident

    def vcpu(self, vcpu: VcpuId) -> Vcpu:
        """Of a thread that exists. RequestRefused."""
        domain = self._resident(vcpu[0]).domain
        if not 0 <= vcpu[1] < len(domain.vcpus) or domain.vcpus[vcpu[1]].context.empty:
            raise RequestRefused(f"guest {vcpu[0]} has no vCPU {vcpu[1]} that has been started")
        return domain.vcpus[vcpu[1]]

    # -- registers ---------------------------------------------------------------------------------------

    def registers(self, vcpu: VcpuId) -> Registers:
        """A copy of a vCPU's registers. RequestRefused."""
        return self.vcpu(vcpu).context.registers

    def set_registers(self, vcpu: VcpuId, wanted: dict[TargetRegister, int]) -> None:
        """Write some of a vCPU's registers. RequestRefused: one that cannot be written would change."""
        registers, changed = self.registers(vcpu), False
        for register, value in wanted.items():
            if register.read(registers) == value:
                continue
            if register.write is None:
                raise RequestRefused(f"{register.name} cannot be written")
            register.write(registers, value)
            changed = True
        if changed:
            try:
                self._machine.set_registers(self._resident(vcpu[0]).domain, vcpu[1], registers)
            except ConfigError as refusal:
                raise RequestRefused(str(refusal)) from refusal

    # -- memory ------------------------------------------------------------------------------------------

    def read(self, vcpu: VcpuId, va: int, length: int) -> bytes:
        """Memory as a vCPU sees it: as much from `va` on as is mapped. RequestRefused: nothing is."""
        raw = self._resident(vcpu[0]).domain.ram.raw
        found = b"".join(raw[at : at + count] for at, count in self._pieces(vcpu, va, length))
        if length and not found:
            raise RequestRefused(f"{va:#x} is not mapped")
        return found

    def write(self, vcpu: VcpuId, va: int, data: bytes) -> None:
        """Store bytes where a vCPU sees them. RequestRefused: then nothing is stored."""
        domain = self._resident(vcpu[0]).domain
        pieces = list(self._pieces(vcpu, va, len(data)))
        if sum(count for _, count in pieces) < len(data):
            raise RequestRefused(f"{va:#x} is not mapped")
        frames = domain.physical.frames
        for at, _ in pieces:
            mfn = at >> PAGE_SHIFT
            if frames.type_np[mfn] not in _FREE_TYPES:
                raise RequestRefused(f"{va:#x} is in a page table or a descriptor table")
            if frames.owner_np[mfn] != domain.domid:
                raise RequestRefused(f"{va:#x} is memory of another guest or of the hypervisor")
        view = memoryview(data)
        for at, count in pieces:
            self._machine.poke(at, bytes(view[:count]))
            view = view[count:]

    def _pieces(self, vcpu: VcpuId, va: int, length: int) -> Iterator[tuple[int, int]]:
        """A range of virtual addresses as (machine address, bytes), page by page, to where it is mapped."""
        found = self.vcpu(vcpu)
        domain = self._resident(vcpu[0]).domain
        last = MASK64 if domain.width == 64 else 0xFFFF_FFFF
        while length > 0 and va <= last:
            step = min(length, PAGE_SIZE - (va & PAGE_MASK))
            address = _machine_address(domain, found, va)
            if address is None:
                return
            yield address, step
            va, length = va + step, length - step


def _machine_address(domain: Domain, vcpu: Vcpu, va: int) -> int | None:
    """Where a virtual address is, by the tables of the vCPU's mode, else by its kernel's; None: nowhere."""
    user = 0 if vcpu.in_kernel else vcpu.paging.user_l4
    for top in (user, vcpu.paging.kernel_l4):
        found = walk(domain.ram, top, va, domain.width) if top else None
        if found is not None:
            return found.address & (PTE_MFN_MASK | PAGE_MASK)
    return None
