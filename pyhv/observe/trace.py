# SPDX-License-Identifier: GPL-2.0-only
"""A trace: one line of JSON for each exit, in order, for `jq`, `grep` and pandas.

    {"time":48250,"domid":1,"vcpu":0,"kind":"hypercall","detail":17,"name":"xen_version","rip":"0x100400"}

`time` is machine time in ns; `detail` is what `pyhv.cpu.exits.ExitRecord` says; `name` is what people call
that detail: the hypercall, the exception, the port. RIP is text, because JSON readers lose bits above 2**53.
This module sees records, not domains.
"""

from collections.abc import Callable
from typing import Final

from pyhv.abi.numbers import Hypercall
from pyhv.abi.x86 import Vector
from pyhv.cpu import vmcb as v
from pyhv.cpu.exits import ExitKind, ExitRecord

_BUFFER: Final = 1 << 16
_VECTORED: Final = frozenset(
    {
        ExitKind.PAGE_FAULT,
        ExitKind.GENERAL_PROTECTION,
        ExitKind.DEVICE_NOT_AVAILABLE,
        ExitKind.EXCEPTION,
        ExitKind.INVALID_OPCODE,
    }
)
_HYPERCALL_NAMES: Final = {int(number): number.name.lower() for number in Hypercall}
_VECTOR_NAMES: Final = {int(vector): f"#{vector.name}" for vector in Vector}


def hypercall_name(number: int) -> str:
    """Xen's name of a hypercall, or its number if there is none."""
    return _HYPERCALL_NAMES.get(number) or f"hypercall {number}"


def detail_name(kind: ExitKind, detail: int) -> str:
    """What people call the detail of an exit; empty if the kind has none."""
    if kind is ExitKind.HYPERCALL:
        return hypercall_name(detail)
    if kind is ExitKind.SYSTEM_CALL:
        return f"system call {detail}"
    if kind is ExitKind.SOFTWARE_INTERRUPT:
        return f"int {detail:#x}"
    if kind is ExitKind.PORT_IO:
        return f"port {detail:#x}"
    if kind is ExitKind.CPUID:
        return f"leaf {detail:#x}"
    if kind in _VECTORED:
        return _VECTOR_NAMES.get(detail, f"vector {detail}")
    return ""


class Trace:
    """An observer that writes lines to `write` (a binary file's method), some thousands at a time."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._lines: list[str] = []
        self._held = 0
        self._names: dict[tuple[ExitKind, int], str] = {}
        self.count = 0
        """Lines so far."""

    def exit(self, record: ExitRecord) -> None:
        """Write one exit."""
        time, domid, vcpu, kind, detail, registers = record
        text = self._names.get((kind, detail))
        if text is None:
            text = f'"kind":"{kind.name.lower()}","detail":{detail},"name":"{detail_name(kind, detail)}"'
            if len(self._names) < 4096:  # details may come from the guest
                self._names[kind, detail] = text
        line = f'{{"time":{time},"domid":{domid},"vcpu":{vcpu},{text},"rip":"{registers[v.RIP]:#x}"}}\n'
        self._lines.append(line)
        self._held += len(line)
        self.count += 1
        if self._held >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Hand over what is held back."""
        if self._lines:
            self._write("".join(self._lines).encode("ascii"))
            self._lines.clear()
            self._held = 0
