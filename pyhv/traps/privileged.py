# SPDX-License-Identifier: GPL-2.0-only
"""Privileged instructions of a PV kernel: what Xen does when they fault with #GP(0).

A PV kernel runs without privilege, yet Linux and others still execute a handful of privileged instructions
and expect them to work: control and debug register moves, CLTS, MSR accesses, RDTSC, CLI and STI (which do
nothing), and CPUID behind the prefix `ud2; "xen"`. Everything else keeps its #GP. What a register may hold
follows Xen 4.17; which MSRs exist is in `msr.py`.
"""

from collections.abc import Callable
from typing import Final

from pyhv.abi.numbers import Assist
from pyhv.abi.x86 import (
    CR0_TS,
    CR4_DE,
    CR4_TSD,
    GUEST_CR0,
    PF_U,
    Vector,
)
from pyhv.address import MASK32, MASK64, cr3_to_mfn, is_canonical, mfn_to_cr3
from pyhv.cpu import vmcb as v
from pyhv.cpu.cpuid import cpuid
from pyhv.cpu.decode import (
    Op,
    Privileged,
    is_two_byte,
    linear_address,
    prefixed,
    privileged,
    stack_references,
)
from pyhv.cpu.opcodes import MAX_LENGTH, Verdict, examine
from pyhv.errors import XenError
from pyhv.traps.guestcpu import GuestCpu
from pyhv.traps.msr import Refused, read_msr, write_msr

FORCED_EMULATION: Final = b"\x0f\x0bxen"
_ICEBP: Final = 0xF1
_RDPMC: Final = 0x33
_CONTROL_REGISTERS: Final = frozenset({0, 2, 3, 4, 8})
_CR4_SETTABLE: Final = 0x4 | 0x8
"""TSD and DE; FSGSBASE and OSXSAVE are not offered by the CPUID policy."""
_CR4_VISIBLE: Final = 0x660
_USER_TOO: Final = frozenset({Op.RDTSC, Op.RDTSCP, Op.CLI, Op.STI, Op.CPUID})


def fetch(cpu: GuestCpu, address: int, length: int = MAX_LENGTH) -> bytes:
    """Up to `length` code bytes at a linear address, fewer where the next page is not mapped."""
    memory = cpu.memory
    own = memory.l4
    of_user = not cpu.vcpu.in_kernel and memory.width == 64
    if of_user:
        memory.use(cpu.vcpu.paging.user_l4)
    try:
        first = min(length, 0x1000 - (address & 0xFFF))
        try:
            code = memory.read(address, first)
        except XenError:
            return b""
        if first < length:
            try:
                code += memory.read(address + first, length - first)
            except XenError:
                return code
        return code
    finally:
        if of_user:
            memory.use(own)


def emulate(cpu: GuestCpu, code: bytes) -> bool:
    """Emulate the privileged instruction at RIP; False if it is none, or not allowed."""
    found = privileged(code)
    if found is None:
        return False
    if not _names_a_register(cpu, found):
        cpu.raise_exception(Vector.UD)
        return True
    if not cpu.vcpu.in_kernel and found.op not in _USER_TOO:
        return False
    try:
        _HANDLERS[found.op](cpu, found)
    except Refused:
        return False
    q = cpu.vmcb.q
    q[v.RIP] = (q[v.RIP] + found.length) & MASK64
    return True


def forced(cpu: GuestCpu) -> bool:
    """The forced-emulation prefix: only CPUID may follow; anything else is the #UD that it was.

    Where the page that holds what follows the prefix cannot be read, that is the page fault. But an UD2 whose
    next bytes cannot be read is an UD2, as on a processor, though Xen makes a page fault of it, too. True if
    the exit is settled.
    """
    linear = cpu.linear_rip()
    if fetch(cpu, linear, len(FORCED_EMULATION)) != FORCED_EMULATION:
        return False
    wanted = len(FORCED_EMULATION) + 2
    code = fetch(cpu, linear, wanted)
    if len(code) < wanted:
        cpu.raise_page_fault((linear + len(code)) & MASK64, 0 if cpu.vcpu.in_kernel else PF_U)
        return True
    if code != FORCED_EMULATION + b"\x0f\xa2":
        return False
    if cpuid_faults(cpu):
        cpu.vmcb.rip = (cpu.vmcb.rip + 5) & MASK64
        cpu.raise_exception(Vector.GP, 0)
        return True
    answer_cpuid(cpu)
    cpu.vmcb.rip = (cpu.vmcb.rip + 7) & MASK64
    return True


def cpuid_faults(cpu: GuestCpu) -> bool:
    """Whether CPUID is #GP(0): the guest kernel has asked for that, and this is user mode."""
    return cpu.vcpu.msrs.cpuid_faulting and not cpu.vcpu.in_kernel


def is_off_the_stack(cpu: GuestCpu) -> bool:
    """Whether the instruction at RIP, which gave #GP(0), used the stack segment with a non-canonical address.

    On hardware that is #SS(0); the emulator does not tell the two apart.
    """
    q = cpu.vmcb.q
    if not cpu.vmcb.d[v.HFLAGS] & v.HF_CS64:
        return False
    found = stack_references(fetch(cpu, q[v.RIP]))
    if found is None:
        return False
    length, references = found
    return not all(is_canonical(linear_address(one, length, q, MASK64)) for one in references)


def refused_as(cpu: GuestCpu) -> Vector:
    """What hardware raises where the emulator raised #GP(0): #SS off the stack, #UD for what it refuses."""
    if is_off_the_stack(cpu):
        return Vector.SS
    width = 64 if cpu.vmcb.d[v.HFLAGS] & v.HF_CS64 else 32
    refused = examine(fetch(cpu, cpu.linear_rip()), width) is Verdict.REFUSED
    return Vector.UD if refused else Vector.GP


def undefined_as(cpu: GuestCpu) -> Vector:
    """What hardware raises where the emulator raised #UD: #GP for RDPMC, which it does not know."""
    return Vector.GP if is_two_byte(fetch(cpu, cpu.linear_rip()), _RDPMC) else Vector.UD


def icebp(cpu: GuestCpu) -> bool:
    """Step over ICEBP, which the emulator takes for an undefined instruction; whether it was one."""
    length = prefixed(fetch(cpu, cpu.linear_rip()), _ICEBP)
    if length:
        cpu.vmcb.rip = (cpu.vmcb.rip + length) & MASK64
    return length > 0


def answer_cpuid(cpu: GuestCpu) -> None:
    """Put the policy's answer into RAX, RBX, RCX, RDX."""
    q = cpu.vmcb.q
    clock, width = cpu.domain.clock, cpu.domain.width
    leaf, subleaf = q[v.RAX] & MASK32, q[v.RCX] & MASK32
    answer = cpuid(leaf, subleaf, clock.tsc_rate, width, emulated_tsc=clock.traps_tsc)
    q[v.RAX], q[v.RBX], q[v.RCX], q[v.RDX] = answer


def may_use_port(cpu: GuestCpu, port: int, size: int) -> bool:
    """Whether the guest may execute IN or OUT on a port: by virtual IOPL, or by its I/O bitmap."""
    vcpu = cpu.vcpu
    if _iopl_allows(cpu):
        return True
    if port + size >= vcpu.ports.bitmap_ports:
        return False  # Xen never grants the last port
    bits = 0
    for byte in range(2):  # both are looked at whatever `size` is; one that cannot be read permits nothing
        try:
            bits |= cpu.memory.read((vcpu.ports.bitmap + port // 8 + byte) & MASK64, 1)[0] << 8 * byte
        except XenError:
            bits |= 0xFF << 8 * byte
    return bits >> port % 8 & (1 << size) - 1 == 0


def _iopl_allows(cpu: GuestCpu) -> bool:
    vcpu = cpu.vcpu
    if not vcpu.in_kernel:
        return vcpu.ports.iopl == 3
    architectural = Assist.ARCHITECTURAL_IOPL in cpu.domain.assists
    return architectural or vcpu.ports.iopl >= 1


def _interrupt_flag(cpu: GuestCpu, _found: Privileged) -> None:
    if not _iopl_allows(cpu):
        raise Refused


def _clts(cpu: GuestCpu, _found: Privileged) -> None:
    cpu.vmcb.task_switched = False


def _nothing(_cpu: GuestCpu, _found: Privileged) -> None:
    """WBINVD: caches are coherent."""


def _rdtsc(cpu: GuestCpu, _found: Privileged) -> None:
    if not cpu.vcpu.in_kernel and cpu.vcpu.cr4 & CR4_TSD:
        raise Refused
    tsc = cpu.domain.clock.tsc()
    q = cpu.vmcb.q
    q[v.RAX], q[v.RDX] = tsc & MASK32, tsc >> 32 & MASK32


def _rdtscp(cpu: GuestCpu, found: Privileged) -> None:
    _rdtsc(cpu, found)
    cpu.vmcb.q[v.RCX] = cpu.vcpu.msrs.tsc_aux


def _cpuid(cpu: GuestCpu, _found: Privileged) -> None:
    answer_cpuid(cpu)


def _names_a_register(cpu: GuestCpu, found: Privileged) -> bool:
    """Whether a move of a control or debug register names one that there is; else it is #UD at any level."""
    if found.op in (Op.READ_CR, Op.WRITE_CR):
        return found.number in _CONTROL_REGISTERS
    if found.op in (Op.READ_DR, Op.WRITE_DR):
        return found.number < 4 or found.number in (6, 7) or (found.number < 8 and not cpu.vcpu.cr4 & CR4_DE)
    return True


def _read_cr(cpu: GuestCpu, found: Privileged) -> None:
    vcpu = cpu.vcpu
    if found.number == 0:
        value = GUEST_CR0 | (CR0_TS if cpu.vmcb.task_switched else 0)
    elif found.number == 2:
        value = vcpu.info.cr2
    elif found.number == 3:
        value = mfn_to_cr3(vcpu.paging.kernel_l4, vcpu.width)
    elif found.number == 4:
        value = vcpu.cr4
    else:
        raise Refused
    cpu.vmcb.q[found.register] = value


def _write_cr(cpu: GuestCpu, found: Privileged) -> None:
    vcpu, value = cpu.vcpu, cpu.vmcb.q[found.register]
    if found.number == 0:
        if (value ^ GUEST_CR0) & ~CR0_TS:
            raise Refused
        cpu.vmcb.task_switched = bool(value & CR0_TS)
    elif found.number == 2:
        vcpu.info.cr2 = value
    elif found.number == 3:
        try:
            cpu.new_baseptr(cr3_to_mfn(value, vcpu.width))
        except XenError as error:
            raise Refused from error
    elif found.number == 4:
        vcpu.cr4 = value & _CR4_SETTABLE | _CR4_VISIBLE
        cpu.engine.trap_user_time(bool(vcpu.cr4 & CR4_TSD))
    else:
        raise Refused


def _read_dr(cpu: GuestCpu, found: Privileged) -> None:
    try:
        cpu.vmcb.q[found.register] = cpu.vcpu.debug.read(found.number, cpu.vcpu.cr4)
    except XenError as error:
        raise Refused from error


def _write_dr(cpu: GuestCpu, found: Privileged) -> None:
    try:
        cpu.vcpu.debug.write(found.number, cpu.vmcb.q[found.register], cpu.vcpu.cr4)
        cpu.rearrange = True
    except XenError as error:
        raise Refused from error


# -- MSRs ------------------------------------------------------------------------------------------------


def _rdmsr(cpu: GuestCpu, _found: Privileged) -> None:
    q = cpu.vmcb.q
    value = read_msr(cpu, q[v.RCX] & MASK32)
    q[v.RAX], q[v.RDX] = value & MASK32, value >> 32


def _wrmsr(cpu: GuestCpu, _found: Privileged) -> None:
    q = cpu.vmcb.q
    write_msr(cpu, q[v.RCX] & MASK32, (q[v.RDX] & MASK32) << 32 | q[v.RAX] & MASK32)


_HANDLERS: Final[dict[Op, Callable[[GuestCpu, Privileged], None]]] = {
    Op.CLI: _interrupt_flag,
    Op.STI: _interrupt_flag,
    Op.CLTS: _clts,
    Op.WBINVD: _nothing,
    Op.RDTSC: _rdtsc,
    Op.RDTSCP: _rdtscp,
    Op.CPUID: _cpuid,
    Op.RDMSR: _rdmsr,
    Op.WRMSR: _wrmsr,
    Op.READ_CR: _read_cr,
    Op.WRITE_CR: _write_cr,
    Op.READ_DR: _read_dr,
    Op.WRITE_DR: _write_dr,
}
