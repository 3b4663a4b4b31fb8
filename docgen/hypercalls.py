# SPDX-License-Identifier: GPL-2.0-only
"""`docs/hypercalls.md`, written from the table that also dispatches: `python -m docgen.hypercalls`.

What is documented is what is there: arguments by the handlers' signatures, meaning and errors by their
docstrings. A test compares the file with this module's output.
"""

from collections.abc import Iterable, Sequence

from pyhv.hypercalls.registry import COMMANDS, HYPERCALLS
from pyhv.hypercalls.table import Entry, Status, SubOperation

_INTRODUCTION = """\
# Hypercalls

A 64-bit PV kernel calls the hypervisor with SYSCALL: number in RAX, arguments in RDI, RSI, RDX, R10, R8,
result in RAX; a 32-bit one with INT 0x82 from ring 1: number in EAX, arguments in EBX, ECX, EDX, ESI, EDI,
EBP, result in EAX. A result from -4095 to -1 is an errno of Xen's public header `errno.h`. The calls below
are those of Xen 4.17 for a PV domU, with the names and structures of its public headers (`xen.h`,
`memory.h`, `event_channel.h`, `sched.h`, `vcpu.h`, `grant_table.h`, ...).

*This page is generated from the handlers and their docstrings:*
`python -m docgen.hypercalls > docs/hypercalls.md`.

| status | means |
| --- | --- |
| complete | does and refuses what Xen does and refuses for a plain domU |
| partial | the text says what is missing |
| refused | never does it: Xen's answer to a plain domU, or Xen's where it is built without |

Every number that is not here returns ENOSYS, and so does every sub-operation that is not here.

Errors stand in the order in which they are looked for. EFAULT is not repeated with each sub-operation: it is
the answer wherever its structure cannot be read, which is first, or a result not be stored, which is last.

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


def _text(docstring: str) -> str:
    """A docstring in one cell of a table: what it does, and below that the errors."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in docstring.strip().split("\n\n")]
    return "<br>".join(paragraphs).replace("|", "\\|")


def _file(module: str) -> str:
    """A link to the source of a module."""
    path = module.replace(".", "/") + ".py"
    return f"[{module.rpartition('.')[2]}](../{path})"


def _arguments(entry: Entry) -> str:
    forms = [entry.wide.arguments]
    if entry.narrow.arguments != entry.wide.arguments:
        forms.append(entry.narrow.arguments)
    return "; ".join(", ".join(f"`{one.name}: {one.type.name}`" for one in form) for form in forms)


def _command(operation: SubOperation, entry: Entry) -> tuple[str, ...]:
    structure = "" if operation.structure is None else f"`{operation.structure.__name__}`"
    return (
        f"{operation.number:d}", f"`{operation.number.name.lower()}`", structure, _WORDS[operation.status],
        _text(operation.text), _file(operation.module or entry.module),
    )  # fmt: skip


def document() -> str:
    """The whole page in Markdown."""
    entries = [entry for entry in HYPERCALLS if entry is not None]
    lines = [_INTRODUCTION, "## All calls", ""]
    lines += _table(
        ("nr", "name", "arguments", "status", "what it does; errors", "source"),
        (
            (f"{entry.number:d}", f"`{entry.name}`", _arguments(entry), _WORDS[entry.status],
             _text(entry.text), _file(entry.module))
            for entry in entries
        ),
    )  # fmt: skip
    for entry in entries:
        commands = COMMANDS.get(entry.number)
        if commands is None:
            continue
        lines += ["", f"## {entry.number:d} `{entry.name}`", ""]
        operations = sorted(commands.operations.values(), key=lambda operation: operation.number)
        lines += _table(
            ("command", "name", "structure", "status", "what it does; errors", "source"),
            (_command(operation, entry) for operation in operations),
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
