# SPDX-License-Identifier: GPL-2.0-only
"""`docs/hypercalls.md`, written from the table that also dispatches: `python -m pyhv.hypercalls.document`.

What is documented is what is there; a test compares the file with this module's output. Meanings of the calls
are those of Xen's public headers and not repeated; this module knows only what the table says.
"""

from collections.abc import Iterable, Sequence

from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.hypercalls.table import SUBOPERATIONS, Entry, Status

_INTRODUCTION = """\
# Hypercalls

A 64-bit PV kernel calls the hypervisor with SYSCALL: number in RAX, arguments in RDI, RSI, RDX, R10, R8,
result in RAX; a 32-bit one with INT 0x82 from ring 1: number in EAX, arguments in EBX, ECX, EDX, ESI, EDI,
EBP, result in EAX. A result from -4095 to -1 is an errno of Xen's public header `errno.h`. The calls below
are those of Xen 4.17 for a PV domU; what they mean is told by the public headers (`xen.h`, `memory.h`,
`event_channel.h`, `sched.h`, `vcpu.h`, `grant_table.h`, ...).

*This page is generated:* `python -m pyhv.hypercalls.document > docs/hypercalls.md`.

| status | means |
| --- | --- |
| complete | does and refuses what Xen does and refuses for a plain domU |
| partial | the note says what is missing |
| refused | always returns the errno of the note: Xen's to a plain domU, or Xen's where it is built without |

Every number that is not here returns ENOSYS, and so does every sub-operation that is not here.

Argument types: `u32` takes the lower half of its register, as the C types `int` and `unsigned int` do;
`ulong` and `u64` take all of it; `ptr` is a virtual address in the caller's current kernel tables: EFAULT if
it is not mapped, not writable where something is returned, or in the hypervisor's part of the address space.
To a 32-bit guest `ulong` and `ptr` are 32 bits, and a `u64` takes two registers, the low half first. Where
its arguments are others, they stand behind a semicolon.
"""
_WORDS = {Status.COMPLETE: "complete", Status.PARTIAL: "partial", Status.REFUSED: "refused"}


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(heads), _row("---" for _ in heads), *(_row(row) for row in rows)]


def _summary(entry: Entry) -> str:
    """The first sentence of the handler's description."""
    text = (entry.handler.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split())


def document() -> str:
    """The whole page in Markdown."""
    entries = sorted((entry for entry in HYPERCALLS if entry is not None), key=lambda entry: entry.number)
    calls = [
        (
            str(entry.number),
            f"`{entry.name}`",
            "; ".join(
                ", ".join(f"`{name}: {kind}`" for name, kind in arguments)
                for arguments in (entry.arguments, entry.compat)
                if arguments is not None
            ),
            _WORDS[entry.status],
            "; ".join(text for text in (_summary(entry).rstrip("."), entry.note) if text),
        )
        for entry in entries
    ]
    lines = [_INTRODUCTION, "## All calls", ""]
    lines += _table(("nr", "name", "arguments", "status", "notes"), calls)
    for entry in entries:
        operations = sorted(SUBOPERATIONS.get(entry.name, ()), key=lambda operation: operation.number)
        if not operations:
            continue
        lines += ["", f"## {entry.number} `{entry.name}`", ""]
        lines += _table(
            ("command", "name", "status", "notes"),
            (
                (str(int(one.number)), f"`{one.name}`", _WORDS[one.status], one.note)
                for one in operations
            ),
        )  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
