# SPDX-License-Identifier: GPL-2.0-only
"""`docs/cpu.md`, the processor as a PV guest finds it: `python -m docgen.cpu > docs/cpu.md`.

The tables come from those that also answer the guest (`traps/msr.py`, `cpu/cpuid.py`, `cpu/features.py`); a
test compares the page with this module's output. What is told in words here is held by tests/test_traps_*.py.
"""

from pyhv.cpu.cpuid import cpuid
from pyhv.cpu.features import HIDDEN, ONLY_64_BIT, SHOWN
from pyhv.cpu.opcodes import PREFIXES, REFUSALS
from pyhv.cpu.tsc import rate
from pyhv.traps.msr import TABLE, Register

_INTRODUCTION = """\
# The processor of a guest

What a PV guest's instructions do where that differs from an ordinary processor in ring 0. Registers and
leaves not listed do not exist. *This page is generated:* `python -m docgen.cpu > docs/cpu.md`.

## Privileged instructions

A PV kernel has no privilege, so these raise #GP(0), and the hypervisor performs them: CLI and STI (which do
nothing; the event mask is in `vcpu_info`), CLTS, WBINVD (nothing), MOV to and from CR0, CR2, CR3, CR4 and the
debug registers, RDMSR and WRMSR, RDTSC and RDTSCP where they trap, IN, OUT, INS, OUTS. All but RDTSC, RDTSCP,
CLI, STI and port accesses need kernel mode. HLT, INVLPG, LGDT, LIDT, LLDT, LTR, LMSW, SWAPGS, INVD, SYSRET
and RDPMC stay #GP(0). An instruction that is performed while TF is set traps like any other. A register that
does not exist is #UD at every level: CR1, CR5 to CR7, CR9 to CR15, DR8 to DR15.

| register | reads | writes |
| --- | --- | --- |
| CR0 | 0x80050033, and TS | only TS may change, others #GP |
| CR2 | the address of the last page fault | anything |
| CR3 | the kernel's L4, whatever the mode | MMUEXT_NEW_BASEPTR; #GP if that refuses |
| CR4 | 0x660 and what was set | TSD and DE; other bits are dropped |
| DR0 to DR3 | what was written | addresses outside the hypervisor's area, others #GP |
| DR6 | 0xffff0ff0 and the events so far | B0 to B3, BD, BS, BT; bits above 31 #GP |
| DR7 | 0x400 and what was written | GD, bits above 31, and port breakpoints without CR4.DE #GP |
| DR4, DR5 | DR6 and DR7; #UD if CR4.DE is set | as they read |

CPUID is not privileged and answers as below, in kernel and user mode, with and without Xen's forced-emulation
prefix (`ud2; "xen"`). A kernel that sets bit 0 of MISC_FEATURES_ENABLES makes it #GP(0) in user mode.

## Instructions that look without privilege

| instruction | genuine Xen | here |
| --- | --- | --- |
| SGDT | limit 0xefff, base 0xffff820000000000 + vCPU * 0x20000 | the same |
| SIDT | the host's: limit 0xfff, a base in Xen's area | limit 0, base 0 |
| SLDT | 0 without an LDT, else 0xe050 | the same |
| STR | 0xe040 | the same |
| SMSW | CR0's lower half: 0x33, and TS while TS is set | the same |
| LAR, LSL, VERR, VERW | descriptors of the GDT and LDT that ring 3 may know, Xen's own ones too | the same |

## Segments of 32-bit guests

Bases, privileges, presence, the LDT and the emptying of segment registers on the way out are the processor's.
Frames that the hypervisor builds, and the iret hypercall, respect limits; what the guest itself accesses
beyond a limit or by a null selector goes through, as if the limit were 4 GiB and a null segment's base 0.

Far CALL and JMP through call gates (type 0xc) are performed by the hypervisor, as Xen does it: the processor
raises #GP with the gate's selector, because it knows no 32-bit gates in long mode. A CALL that leads from
ring 3 to ring 1 changes to kernel_ss:kernel_sp and copies the gate's parameters; there is no way into other
inner rings. What is not allowed stays #GP(gate), or is #GP, #NP, #TS or #SS of whatever cannot be loaded. In
a 64-bit guest every call gate is #GP(gate). There are no task gates and no other TSS than Xen's.

SYSENTER enters its callback from ring 1 and ring 3 alike, and the frame says 3:0, because where it came from
is lost. SYSCALL and SYSRET are #UD, as on an Intel part; virtual-8086 mode is #GP(0) of the iret hypercall.

## The way back to a 64-bit guest

A hypercall by SYSCALL ends with SYSRET: CS and SS are Xen's flat ones afterwards (0xe033, 0xe02b), whatever
they were, RCX is RIP and R11 is RFLAGS; an event that is due on the way shows these selectors. The iret
hypercall ends with IRET, which loads all that its frame says, unless VGCF_in_syscall is set: then it ends
with SYSRET too, which leads to 32-bit code if the frame's CS is 0xe023, cannot set RF, and traps before the
first instruction if it sets TF. A RIP that is not canonical makes an IRET of it, and #GP at the target. After
exceptions that the hypervisor settles itself nothing changes but what the instruction changes. SYSCALL
without a callback is #UD two bytes back, with RCX, R11 and the selectors as SYSCALL leaves them; in 32-bit
code it is #UD as on an Intel part, and never a hypercall.

TF does not trap inside the kernel's entry, whatever the way in: it is in the frame, and clear in the handler.

## The FPU

A vCPU starts with the FPU as FNINIT leaves it (FCW 0x37f, all registers empty, MXCSR 0x1f80), which was
measured on Xen 4.17 - from 4.20 on it is the state after power-on - or with the FXSAVE image in the context
that VCPUOP_initialise gets, if VGCF_i387_valid is set.

Arithmetic, comparisons and conversions of SSE and of the x87 unit are the host processor's own, on x86-64
hosts where the engine is tuned: results, the flags in MXCSR and in the status word, and unmasked exceptions.
Those of SSE are #XM at the instruction, those of the x87 unit #MF at the next one that waits. A guest sees
these differences:

| what | a processor | here, tuned | here, not tuned |
| --- | --- | --- | --- |
| flags in MXCSR; #XM | as the SDM says | the same | what was loaded, never another one; never |
| FTZ, DAZ; two NaNs as operands | as the SDM says | the same | FTZ is ignored by SSE (the x87 unit obeys \
it), MIN and MAX keep denormals under DAZ; another one of the NaNs may be the result |
| DPPS, DPPD | sums of pairs, then their sum | the same | one lane after the other, rounded each time |
| RCPPS, RSQRTPS, RCPSS, RSQRTSS | 12 bits | all 24 bits | all 24 bits |
| PCMPxSTRx, equal ordered | also finds the start of a string at the end | the same | finds whole strings |
| x87 flags; C1 | as the SDM says | the same | ZE alone, also for 0/0 and infinity/0; C1 by FXAM alone |
| FISTTP of numbers too large | the integer indefinite | the same | the largest or least integer |
| FCOMI, FUCOMI and their kind | OF, SF, AF become 0 | the same | OF, SF, AF stay |
| FPREM, FPREM1, FSCALE, FXTRACT, sines, logarithms | 64-bit mantissa | the same | 53-bit mantissa; FPREM \
may end early, FSQRT of a negative number sets C2 |
| FLDL2T, FLDPI and others | by the rounding mode | the same | rounded to nearest |
| stack overflow and underflow | IE and SF, an indefinite | not noticed | not noticed |
| arithmetic with a number of 32 or 64 bits in memory | of two NaNs the larger; no DE beside a NaN | the \
number becomes an 80-bit one first: quiet, and DE if it is a denormal | the same as tuned, without flags |
| an unmasked invalid operand, denormal or zero divisor | nothing is stored or popped | a result is not \
stored into a register; FIST and FST store, and pops are done | as if masked |
| an exact tiny result, UE unmasked | #XM, #MF | a result | a result |
| reserved bits of MXCSR | #GP by LDMXCSR and FXRSTOR | the same | kept |
| FOP, FIP, FDP | the last instruction's | 0, or what was loaded | the same |
| MMX registers in a FXSAVE image | bits 64 to 79 are ones | as they were | as they were |
| CVTPI2PS, CVTPI2PD from memory | the x87 state stays (AMD) | becomes MMX' | becomes MMX' |

## Breakpoints

DR0 to DR3 fire as on hardware, for whichever vCPU set them, in both modes: instruction breakpoints before the
instruction unless RF is set, data breakpoints of 1, 2, 4 or 8 bytes after it, port breakpoints with CR4.DE.
The guest runs at full speed until it meets one, which costs an exit or two; but accesses to a page with a
data breakpoint take longer, and a vCPU with an enabled port breakpoint runs one instruction at a time.
Where the engine is not tuned, all vCPUs of the domain run at about a fifth of their speed while one has data
breakpoints, and a change of what is watched costs the domain its translated code; on other hosts than x86-64
each instruction is a step there, a hundred times slower. See `traps/debug.py`. What the
hypervisor reads and writes for the guest is not seen by them.

## Exceptions

| vector | when |
| --- | --- |
| #DE #NM #TS #NP #SS #GP #PF #MF | as on hardware; #SS also for non-canonical addresses by RSP or RBP |
| #DB | single steps, breakpoints, ICEBP |
| #BP #OF #BR | INT3; INTO and BOUND in 32-bit code |
| #UD | as on hardware, and SYSCALL and SYSRET in 32-bit code, as on an Intel part; see below |
| #AC | never: EFLAGS.AC changes without an exit, and checking every access would cost all guests dearly |
| #XM | as on hardware; never where the engine is not tuned |
| NMI | VCPUOP_send_nmi, if there is a handler; another one waits for the iret hypercall of the first |
| #DF | never |
| #MC | never: the two banks of the virtual machine check architecture never hold an error |

{refusals}

The frame of a fault has RF set, as the processor pushes it, so that a breakpoint does not stop its
instruction again.

## Ports

A domain without devices owns no port: reads give all ones, writes vanish. Both need the virtual IOPL or a
clear bit for every byte in the I/O bitmap (`physdev_op`), else #GP(0). The PIT's counter 2 and its output bit
(0x42, 0x61) move with time, the RTC's index (0x70) and the PCI address (0xcf8, 4 bytes) read back. INS stores
before the permission is checked: where it is refused, its first element has become zero.
"""


_LEAVES = (
    ("1 EBX", "APIC id 0 on every vCPU; line size and threads of the host", "the same: 64 bytes, 1 thread"),
    ("2, 4", "the host's caches", "nothing: an emulator has none"),
    ("3, 5, 6, 9, 0xc", "nothing: serial number, MONITOR, power, DCA", "nothing"),
    ("7, 0xd", "the features below", "none of them"),
    ("0xa", "nothing without a virtual PMU", "nothing"),
    ("0xb", "nothing: it comes with X2APIC, which is hidden", "nothing"),
    (
        "0x40000000 to 0x40000005",
        "the hypervisor, the MSR of its hypercall page, the TSC, the width of machine addresses",
        "the same; RDTSC is emulated (0x40000003 EAX bit 0) where the host's TSC cannot be used, and in"
        " virtual time",
    ),
    ("0x80000002 to 0x80000004", "the host's brand", "a name of its own"),
    ("0x80000005, 0x80000006", "on Intel's processors the L2 cache", "nothing"),
    ("0x80000008", "widths of addresses", "40 bits of machine address; 48 linear ones, 32 in a 32-bit guest"),
)
"""Leaf, what Xen 4.17 shows of it, what is shown here."""


def _number(row: Register) -> str:
    return f"{row.first:#x}" if row.first == row.last else f"{row.first:#x} to {row.last:#x}"


_REFUSALS = """\
The emulator knows instructions that this processor does not have, and would execute them. They are #UD, so
that a program which tries what its processor can do finds out. So is LOCK before anything but ADD, OR, ADC,
SBB, AND, SUB, XOR, XCHG, NOT, NEG, INC, DEC, BTS, BTR, BTC, XADD, CMPXCHG, CMPXCHG8B and CMPXCHG16B of
memory, and F3 or F2 before an SSE instruction that has no such form. A misaligned memory operand of 16 bytes
is #GP(0), but of MOVUPS, MOVUPD, MOVDQU, LDDQU and PCMPxSTRx.

| refused | opcodes | prefix | memory | register | code |
| --- | --- | --- | --- | --- | --- |
{rows}

All this holds for engines tuned and not tuned (`docs/architecture.md`), but for operands:
*where the emulator is not tuned* none need be aligned, except those of FXSAVE, FXRSTOR and CMPXCHG16B, and it
reads 16 bytes where CVTPS2PI, CVTTPS2PI, CVTPS2PD, CVTDQ2PD and ROUNDSD have an operand of 8 and ROUNDSS one
of 4, 8 where PUNPCKLBW, PUNPCKLWD and PUNPCKLDQ of MMX registers have one of 4: a page fault if the next page
is absent."""


def _refusals() -> str:
    rows = [
        f"| {row.why} | {row.opcodes} | {_with(row.prefixes)} | {_forms(row.memory)} |"
        f" {_forms(row.register)} | {f'{row.width}-bit' if row.width else 'any'} |"
        for row in REFUSALS
    ]
    return _REFUSALS.format(rows="\n".join(rows))


def _with(prefixes: str) -> str:
    return "any" if len(prefixes.split()) == len(PREFIXES) else prefixes.replace(" ", ", ")


def _forms(regs: str) -> str:
    """The values of ModRM's reg field for which a form is refused."""
    return "all" if len(regs) == 8 else ", ".join(f"/{digit}" for digit in regs) or "-"


def document() -> str:
    """The whole page in Markdown."""
    lines = [_INTRODUCTION.format(refusals=_refusals()), "## MSRs", ""]
    lines += [
        "Every other MSR is #GP(0), in either direction. A kernel that has no handler for #GP yet reads 0",
        "instead from those that a machine has.",
        "",
        "| number | name | reads | writes |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {_number(row)} | {row.name} | {row.reads} | {row.writes} |" for row in TABLE]
    return "\n".join([*lines, "", *_cpuid()]) + "\n"


def _cpuid() -> list[str]:
    """The section on CPUID: leaves, features and their reasons."""
    lines = [
        "## CPUID",
        "",
        "The answers with an emulated TSC of 1 GHz; they are the same on every vCPU. Leaves that are not",
        "listed are all zero.",
        "",
        "| leaf | EAX | EBX | ECX | EDX |",
        "| --- | --- | --- | --- | --- |",
    ]
    tsc = rate(1_000_000_000)
    for first, last in ((0, 0x20), (0x4000_0000, 0x4000_0010), (0x8000_0000, 0x8000_0020)):
        for leaf in range(first, last):
            for subleaf in range(3 if leaf == 0x4000_0003 else 1):
                answer = cpuid(leaf, subleaf, tsc)
                if any(answer):
                    name = f"{leaf:#x}" + (f" sub {subleaf}" if leaf == 0x4000_0003 else "")
                    lines.append(f"| {name} | {' | '.join(f'{value:#010x}' for value in answer)} |")
    lines += ["", "| leaf | Xen 4.17 shows a PV domU | here |", "| --- | --- | --- |"]
    lines += [f"| {leaf} | {xen} | {here} |" for leaf, xen, here in _LEAVES]
    lines += [
        "",
        "A domain of Xen 4.17 is shown the features that Xen's policy gives PV guests by default and the",
        "processor has. So is a domain here. These are all features that the policy knows, but for leaves",
        "beyond the highest. A 32-bit guest has none of " + ", ".join(sorted(ONLY_64_BIT)) + ".",
        "",
        "| word | features | |",
        "| --- | --- | --- |",
    ]
    for word in dict.fromkeys((*SHOWN, *HIDDEN)):
        name = f"{word.leaf:#x} sub {word.subleaf}" if word.leaf in (7, 0xD) else f"{word.leaf:#x}"
        name = f"{name} {word.register.upper()}"
        if word in SHOWN:
            lines.append(f"| {name} | {_listed(SHOWN[word])} | shown |")
        for withheld in HIDDEN.get(word, ()):
            lines.append(f"| {name} | {_listed(withheld.bits)} | hidden: {withheld.why} |")
    return lines


def _listed(bits: dict[str, int]) -> str:
    return ", ".join(f"{name} ({bit})" for name, bit in bits.items())


if __name__ == "__main__":
    print(document(), end="")
