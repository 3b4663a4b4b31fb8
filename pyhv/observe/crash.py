# SPDX-License-Identifier: GPL-2.0-only
"""A crash report as text: what the vCPU was about to do, where it came from, what happened before.

Symbols are the image's own (ELF `.symtab`). Nothing of the guest reaches the text as it is: what it printed
is escaped, so a report cannot steer the terminal it is read on.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from pyhv.cpu.decode import disassemble
from pyhv.cpu.exits import ExitKind
from pyhv.cpu.registers import SEGMENTS, SegmentRegister, wide_name
from pyhv.loader.image import Symbol
from pyhv.observe.trace import detail_name
from pyhv.traps.report import CrashReport

INSTRUCTIONS: Final = 4
LAST_EXITS: Final = 16
MAX_UNSIZED: Final = 0x10000
"""How far an address may lie behind a symbol of unknown size and still be named after it, in bytes."""
_GENERAL: Final = (
    ("rax", "rbx", "rcx"), ("rdx", "rsi", "rdi"), ("rbp", "rsp", "r8"), ("r9", "r10", "r11"),
    ("r12", "r13", "r14"), ("r15", "rip", "rflags"),
)  # fmt: skip
_SYSTEM: Final = (("cs", "ss", "cr2"), ("cr3", "fs_base", "gs_base"))
_ROWS: Final = {
    64: (*_GENERAL, *_SYSTEM),
    32: (
        ("eax", "ebx", "ecx", "edx"), ("esi", "edi", "ebp", "esp"), ("eip", "eflags", "cr2", "cr3"),
        ("cs", "ss", "ds"), ("es", "fs", "gs"),
    ),
}  # fmt: skip
"""Which registers stand in one line, by the guest's width."""
_FLAGS: Final = (
    (11, "OF"), (10, "DF"), (9, "IF"), (8, "TF"), (7, "SF"), (6, "ZF"), (4, "AF"), (2, "PF"), (0, "CF"),
)  # fmt: skip


class Symbols:
    """Addresses to names: `symbol+0x12/0x40` is byte 0x12 of a symbol of 0x40 bytes."""

    def __init__(self, symbols: Sequence[Symbol]) -> None:
        self._symbols = sorted(symbols)
        self._starts = [symbol.va for symbol in self._symbols]

    def name(self, va: int) -> str | None:
        """The nearest symbol at or below `va` that reaches to it; None if there is none."""
        at = bisect_right(self._starts, va)
        if at == 0:
            return None
        start = self._starts[at - 1]
        while at and self._starts[at - 1] == start:  # several names for one address: the sized one knows more
            at -= 1
        here = [symbol for symbol in self._symbols[at:] if symbol.va == start][:16]
        best = max(here, key=lambda symbol: symbol.size)
        offset = va - start
        if offset >= (best.size or MAX_UNSIZED):
            return None
        return f"{best.name}+{offset:#x}" + (f"/{best.size:#x}" if best.size else "")


def render(report: CrashReport, symbols: Sequence[Symbol] = (), tail: Sequence[bytes] = ()) -> str:
    """The whole report; `symbols` are the image's, `tail` the console's last lines."""
    names = Symbols(symbols)
    mode = "kernel" if report.kernel_mode else "user"
    parts = [
        f"Domain {report.domid} ({report.name}) crashed at {report.time_ns / 1e9:.6f} s: {report.cause}",
        f"vCPU {report.vcpu}, in {mode} mode" + _at(names.name(report.pc)),
        "",
        *_registers(report),
        "",
        *_code(report),
        "",
        *_stack(report, names),
        "",
        *exits(report.last_exits, report.width, names),
    ]
    if tail:
        parts += ["", "Last lines of its console:", *(f"  {_escaped(line)}" for line in tail)]
    return "\n".join(parts) + "\n"


def _at(name: str | None) -> str:
    return f", at {name}" if name else ""


def _word(report: CrashReport, value: int) -> str:
    return f"{value:0{report.width // 4}x}"


def exits(last: Sequence[tuple[ExitKind, int, int]], width: int, names: Symbols) -> list[str]:
    """A guest's latest exits - kind, detail, RIP, newest last - as lines; `width` is the guest's, in bits."""
    if not last:
        return ["Last exits: none recorded"]
    lines = ["Last exits (newest last):"]
    for kind, detail, rip in last[-LAST_EXITS:]:
        what, name = detail_name(kind, detail), names.name(rip) or ""
        lines.append(f"   {rip:0{width // 4}x}  {kind.name.lower():<20} {what:<24} {name}".rstrip())
    return lines


def _registers(report: CrashReport) -> list[str]:
    registers, lines = report.registers, []
    for row in _ROWS[report.width]:
        lines.append(" ".join(f"{name:>7} {_word(report, _register(report, name))}" for name in row))
    set_flags = " ".join(name for bit, name in _FLAGS if registers.rflags >> bit & 1) or "none"
    return [*lines, f"  flags {set_flags}"]


def _register(report: CrashReport, name: str) -> int:
    """A register by the name that it has for the guest's width."""
    registers = report.registers
    if name == "cr3":
        return report.cr3
    segment, _, hidden = name.partition("_")
    if segment in SEGMENTS:
        found: SegmentRegister = getattr(registers, segment)
        return found.base if hidden else found.selector
    value: int = getattr(registers, wide_name(name))
    return value & (1 << report.width) - 1


def _code(report: CrashReport) -> list[str]:
    if not report.code:
        return ["Code: not readable at RIP"]
    instructions = disassemble(report.code, report.pc, INSTRUCTIONS, report.width)
    if not instructions:
        return [f"Code: {report.code.hex(' ')} is no instruction"]
    lines = ["Code:"]
    for address, text in instructions:
        mark = "=>" if address == report.pc else "  "
        lines.append(f"{mark} {_word(report, address)}  {text}")
    return lines


def _stack(report: CrashReport, names: Symbols) -> list[str]:
    """The words that lead into the image, by name; of the others just the first few."""
    if not report.stack:
        return ["Stack: not readable at its pointer"]
    lines = [
        f"Stack ({len(report.stack)} words from its pointer; those with a name may be return addresses):"
    ]
    for number, word in enumerate(report.stack):
        name = names.name(word)
        if name or number < 8:
            at = report.sp + report.width // 8 * number & (1 << report.width) - 1
            lines.append(f"   {_word(report, at)}  {_word(report, word)}  {name or ''}".rstrip())
    return lines


def _escaped(line: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in line)
