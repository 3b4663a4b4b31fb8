# SPDX-License-Identifier: GPL-2.0-only
"""Model-specific registers: what a PV kernel's RDMSR and WRMSR find (Intel SDM volume 4; which of them a PV
guest has, and what they answer, follows Xen 4.17).

One row of `TABLE` is one register or a range of them: what reading gives, what writing does, and both in
words for `docs/cpu.md`. Whatever has no row, or no function in its row, is #GP(0) (`Refused`), but for one
rule: a kernel that has no handler for #GP yet reads 0 from a register that exists on the machine, as it would
not survive the truth.
"""

from collections.abc import Callable
from typing import Final

from pyhv.abi.x86 import EFER_LONG_MODE, EFER_VALUE, PAT_VALUE, Msr, Vector
from pyhv.address import MASK32, MASK64, is_canonical
from pyhv.cpu import vmcb as v
from pyhv.frozen import frozen
from pyhv.traps.guestcpu import GuestCpu

CPUID_FAULTING_AVAILABLE: Final = 1 << 31
CPUID_FAULTING: Final = 1
_COMPAT_EFER: Final = EFER_VALUE & ~EFER_LONG_MODE
MCE_BANKS: Final = 2
_MCG_CAP: Final = MCE_BANKS | 1 << 10 | 1 << 11 | 1 << 24
"""CMCI, threshold states and software recovery, as Xen claims them on Intel's processors."""
_MISC_ENABLE: Final = 1 | 1 << 11 | 1 << 12 | 1 << 23


class Refused(Exception):
    """The access is #GP(0)."""


Reader = Callable[[GuestCpu], int]
Writer = Callable[[GuestCpu, int], None]


@frozen
class Register:
    """A row: registers `first` to `last`. A missing function refuses; `reads` and `writes` are for people."""

    first: int
    last: int
    name: str
    reads: str
    writes: str
    read: Reader | None = None
    write: Writer | None = None


_GP: Final = "#GP"
_IGNORED: Final = "ignored"


def _fixed(value: int) -> Reader:
    return lambda _cpu: value


def _ignore(_cpu: GuestCpu, _value: int) -> None:
    """Accepted without effect."""


# -- registers with a meaning ------------------------------------------------------------------------------


def _long_mode(cpu: GuestCpu) -> None:
    """The bases exist for 64-bit guests only."""
    if cpu.domain.width != 64:
        raise Refused


def _read_base(segment: int) -> Reader:
    def read(cpu: GuestCpu) -> int:
        _long_mode(cpu)
        return cpu.vmcb.q[v.SEG_BASE[segment]]

    return read


def _write_base(segment: int) -> Writer:
    def write(cpu: GuestCpu, value: int) -> None:
        _long_mode(cpu)
        if not is_canonical(value):
            raise Refused
        cpu.vmcb.q[v.SEG_BASE[segment]] = value

    return write


def _read_other_gs(cpu: GuestCpu) -> int:
    _long_mode(cpu)
    return cpu.vcpu.other_gs_base


def _write_other_gs(cpu: GuestCpu, value: int) -> None:
    _long_mode(cpu)
    if not is_canonical(value):
        raise Refused
    cpu.vcpu.other_gs_base = value


def _read_efer(cpu: GuestCpu) -> int:
    return EFER_VALUE if cpu.domain.width == 64 else _COMPAT_EFER


def _write_efer(cpu: GuestCpu, value: int) -> None:
    if value != _read_efer(cpu):
        raise Refused


def _read_apic_base(cpu: GuestCpu) -> int:
    return 0xFEE0_0800 | (0x100 if cpu.vcpu.number == 0 else 0)


def _read_tsc(cpu: GuestCpu) -> int:
    return cpu.domain.clock.tsc()


def _read_tsc_aux(cpu: GuestCpu) -> int:
    return cpu.vcpu.msrs.tsc_aux


def _write_tsc_aux(cpu: GuestCpu, value: int) -> None:
    if value > MASK32:
        raise Refused
    cpu.vcpu.msrs.tsc_aux = value
    cpu.engine.set_tsc_aux(value)


def _read_features(cpu: GuestCpu) -> int:
    return CPUID_FAULTING if cpu.vcpu.msrs.cpuid_faulting else 0


def _write_features(cpu: GuestCpu, value: int) -> None:
    if value & ~CPUID_FAULTING:
        raise Refused
    cpu.vcpu.msrs.cpuid_faulting = bool(value & CPUID_FAULTING)


def _write_hypercall_page(cpu: GuestCpu, value: int) -> None:
    if value & 0xFFF or not cpu.domain.fill_hypercall_page(value >> 12):
        raise Refused


# -- the virtual machine check architecture: two banks that never hold an error ------------------------------


def _read_mcg_status(cpu: GuestCpu) -> int:
    return cpu.vcpu.msrs.mcg_status


def _write_mcg_status(cpu: GuestCpu, value: int) -> None:
    cpu.vcpu.msrs.mcg_status = value


def _bank_control(bank: int) -> Register:
    """MCi_CTL2 of a bank that exists."""

    def read(cpu: GuestCpu) -> int:
        return cpu.vcpu.msrs.mci_ctl2[bank]

    def write(cpu: GuestCpu, value: int) -> None:
        cpu.vcpu.msrs.mci_ctl2[bank] = value

    number = 0x280 + bank
    return Register(number, number, f"MC{bank}_CTL2", "what was written", "anything", read, write)


def _bank(bank: int) -> tuple[Register, Register]:
    """The registers of a bank that exists; there is never an error in it to be told."""
    first, last = 0x400 + 4 * bank, 0x403 + 4 * bank
    name = f"MC{bank}_STATUS, MC{bank}_ADDR, MC{bank}_MISC"
    return (
        Register(first, first, f"MC{bank}_CTL", "all ones", _IGNORED, _fixed(MASK64), _ignore),
        Register(first + 1, last, name, "0", "0, others #GP", _fixed(0), _only_zero),
    )


def _only_zero(_cpu: GuestCpu, value: int) -> None:
    """Nothing but 0 may be written, and changes nothing."""
    if value:
        raise Refused


def _one(number: Msr, reads: str, writes: str, read: Reader | None, write: Writer | None = None) -> Register:
    return Register(number, number, number.name, reads, writes, read, write)


def _hidden(first: int, last: int, name: str) -> Register:
    return Register(first, last, name, "#GP", "#GP")


_BASE: Final = "canonical addresses, others #GP"

TABLE: Final = (
    Register(0, 1, "P5_MC_ADDR, P5_MC_TYPE", "0", _GP, _fixed(0)),
    _one(Msr.TSC, "the guest's TSC", _GP, _read_tsc),
    _one(Msr.PLATFORM_ID, "0", _GP, _fixed(0)),
    _one(Msr.APIC_BASE, "0xfee00900, on other vCPUs than the first 0xfee00800", _GP, _read_apic_base),
    Register(0x3A, 0x3A, "FEATURE_CONTROL", "1: locked", _GP, _fixed(1)),
    _hidden(0x48, 0x49, "SPEC_CTRL, PRED_CMD"),
    _one(Msr.PATCHLEVEL, "0", "0, others #GP", _fixed(0), _only_zero),
    Register(0xC1, 0xC8, "PERFCTR0 to PERFCTR7", "0", _IGNORED, _fixed(0), _ignore),
    _one(
        Msr.PLATFORM_INFO, "bit 31: CPUID faulting is available", _GP, _fixed(CPUID_FAULTING_AVAILABLE)
    ),
    Register(0xE7, 0xE8, "MPERF, APERF", _GP, _IGNORED, None, _ignore),
    _hidden(0x10A, 0x10A, "ARCH_CAPABILITIES"),
    _one(
        Msr.MISC_FEATURES_ENABLES, "bit 0: CPUID of user mode faults", "bit 0, others #GP",
        _read_features, _write_features,
    ),
    _hidden(0x174, 0x176, "SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP"),
    Register(
        0x179, 0x179, "MCG_CAP", f"{_MCG_CAP:#x}: {MCE_BANKS} banks", _IGNORED, _fixed(_MCG_CAP), _ignore
    ),
    Register(0x17A, 0x17A, "MCG_STATUS", "what was written", "anything", _read_mcg_status, _write_mcg_status),
    Register(0x17B, 0x17B, "MCG_CTL", "0", _IGNORED, _fixed(0), _ignore),
    Register(0x186, 0x189, "EVNTSEL0 to EVNTSEL3", "0", _IGNORED, _fixed(0), _ignore),
    _one(Msr.PERF_STATUS, "0", _GP, _fixed(0)),
    _one(Msr.PERF_CTL, "0", _IGNORED, _fixed(0), _ignore),
    Register(0x19A, 0x19A, "THERM_CONTROL", _GP, _IGNORED, None, _ignore),
    Register(0x19C, 0x19C, "THERM_STATUS", "0", _GP, _fixed(0)),
    _one(
        Msr.MISC_ENABLE, f"{_MISC_ENABLE:#x}: fast strings; no BTS, no PEBS, no xTPR messages", _IGNORED,
        _fixed(_MISC_ENABLE), _ignore,
    ),
    Register(0x1B0, 0x1B0, "ENERGY_PERF_BIAS", _GP, _IGNORED, None, _ignore),
    _hidden(0x1D9, 0x1D9, "DEBUGCTL"),
    _one(Msr.PAT, f"{PAT_VALUE:#x}", _GP, _fixed(PAT_VALUE)),
    *(_bank_control(bank) for bank in range(MCE_BANKS)),
    Register(0x280 + MCE_BANKS, 0x29F, "MCi_CTL2 of other banks", "0", _IGNORED, _fixed(0), _ignore),
    Register(0x309, 0x30B, "FIXED_CTR0 to FIXED_CTR2", "0", _IGNORED, _fixed(0), _ignore),
    _one(Msr.PERF_CAPABILITIES, "0", _GP, _fixed(0)),
    Register(
        0x38D, 0x390, "FIXED_CTR_CTRL, PERF_GLOBAL_STATUS, PERF_GLOBAL_CTRL, PERF_GLOBAL_OVF_CTRL", "0",
        _IGNORED, _fixed(0), _ignore,
    ),
    *(row for bank in range(MCE_BANKS) for row in _bank(bank)),
    Register(
        0x400 + 4 * MCE_BANKS, 0x47F, "MCi_CTL to MCi_MISC of other banks", "0", _IGNORED, _fixed(0), _ignore
    ),
    _hidden(0x4D0, 0x4D0, "MCG_EXT_CTL"),
    _hidden(0x800, 0x8FF, "x2APIC"),
    _one(
        Msr.XEN_HYPERCALL_PAGE, "0", "fills the page with hypercall stubs; #GP if it is not writable",
        _fixed(0), _write_hypercall_page,
    ),
    _one(
        Msr.EFER, f"64-bit guests {EFER_VALUE:#x} (SCE, LME, LMA, NXE), 32-bit {_COMPAT_EFER:#x} (NXE)",
        "what it reads, others #GP", _read_efer, _write_efer,
    ),
    _hidden(0xC000_0081, 0xC000_0084, "STAR, LSTAR, CSTAR, SFMASK"),
    _one(Msr.FS_BASE, "FS base; 32-bit guests #GP", _BASE, _read_base(v.FS), _write_base(v.FS)),
    _one(
        Msr.GS_BASE, "GS base of the mode that runs; 32-bit guests #GP", _BASE,
        _read_base(v.GS), _write_base(v.GS),
    ),
    _one(
        Msr.KERNEL_GS_BASE, "GS base of the other mode; 32-bit guests #GP", _BASE,
        _read_other_gs, _write_other_gs,
    ),
    _one(Msr.TSC_AUX, "what was written", "32 bits, others #GP", _read_tsc_aux, _write_tsc_aux),
    Register(0xC001_001F, 0xC001_001F, "NB_CFG", "0, on an Intel part too", _IGNORED, _fixed(0), _ignore),
)  # fmt: skip
"""Every register that somebody asks for, in order."""

_ROWS: Final = {number: row for row in TABLE for number in range(row.first, row.last + 1)}


def _exists_on_the_machine(number: int) -> bool:
    """Whether a real machine has the register, for the rule of kernels without a handler."""
    return number < 0x2000 or 0xC000_0080 <= number <= 0xC000_0103


def read_msr(cpu: GuestCpu, number: int) -> int:
    """The value a guest kernel reads; raises Refused for an MSR it may not read."""
    row = _ROWS.get(number)
    try:
        if row is None or row.read is None:
            raise Refused
        return row.read(cpu)
    except Refused:
        if cpu.vcpu.traps.handlers[Vector.GP][0] == 0 and _exists_on_the_machine(number):
            return 0
        raise


def write_msr(cpu: GuestCpu, number: int, value: int) -> None:
    """Write an MSR for a guest kernel; raises Refused where it may not."""
    row = _ROWS.get(number)
    if row is None or row.write is None:
        raise Refused
    row.write(cpu, value)
