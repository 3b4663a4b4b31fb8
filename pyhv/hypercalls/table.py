# SPDX-License-Identifier: GPL-2.0-only
"""The hypercall table: number, name, arguments, handler and status of each (public header `xen.h`).

A handler is a function `(call, arguments...) -> int` that raises `XenError`; the decorator puts it into the
table, from which come dispatch, trace names, statistics and `docs/hypercalls.md`. Arguments are declared as
`name:type`; `u32` and `s32` ignore the upper half of the register, as the ABI's C types do. Sub-operations
are declared by `suboperations` on a handler's own dispatch table.

A number that is not in the table returns ENOSYS, as on Xen.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyhv.address import MASK32, MASK64
from pyhv.errors import XenError


class Status(enum.Enum):
    """How much of a hypercall there is."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    REFUSED = "refused as Xen refuses it to a plain domU"


Handler = Callable[..., int]
CommandHandler = Callable[..., int | None]
_C = TypeVar("_C", bound=CommandHandler)

_MASKS = {"u32": MASK32, "ulong": MASK64, "ptr": MASK64, "u64": MASK64}


@dataclass(frozen=True, slots=True)
class Entry:
    """One hypercall. `masks` cut each argument to its type's width; `compat` are a 32-bit guest's arguments
    where they are others."""

    number: int
    name: str
    arguments: tuple[tuple[str, str], ...]
    masks: tuple[int, ...]
    handler: Handler
    status: Status
    note: str
    compat: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class SubOperation:
    """One command of a multiplexed hypercall, for the documentation."""

    hypercall: str
    number: int
    name: str
    status: Status
    note: str


HYPERCALLS: list[Entry | None] = [None] * 64
SUBOPERATIONS: dict[str, list[SubOperation]] = {}


def hypercall(
    number: int,
    name: str,
    arguments: str,
    status: Status = Status.COMPLETE,
    note: str = "",
    compat: str | None = None,
) -> Callable[[Handler], Handler]:
    """Enter a handler into the table; `compat` are the arguments of 32-bit guests if they are others."""

    def enter(handler: Handler) -> Handler:
        declared = _declared(arguments)
        masks = tuple(_MASKS[kind] for _, kind in declared)
        narrow = None if compat is None else _declared(compat)
        HYPERCALLS[number] = Entry(number, name, declared, masks, handler, status, note, narrow)
        return handler

    return enter


def _declared(arguments: str) -> tuple[tuple[str, str], ...]:
    pairs = [argument.split(":") for argument in arguments.split()]
    return tuple((pair[0], pair[1]) for pair in pairs)


@dataclass(slots=True)
class Commands:
    """The sub-operations of one hypercall: a dispatch table that documents itself."""

    hypercall: str
    numbers: type[enum.IntEnum]
    handlers: dict[int, Callable[..., Any]] = field(default_factory=dict)

    def command(
        self, number: enum.IntEnum, status: Status = Status.COMPLETE, note: str = ""
    ) -> Callable[[_C], _C]:
        """Enter the handler of one sub-operation."""

        def enter(handler: _C) -> _C:
            self.handlers[number] = handler
            SUBOPERATIONS.setdefault(self.hypercall, []).append(
                SubOperation(self.hypercall, number, number.name.lower(), status, note)
            )
            return handler

        return enter

    def refuse(self, errors: Mapping[enum.IntEnum, enum.IntEnum]) -> None:
        """Document sub-operations that always return one errno."""
        for number, errno in errors.items():

            def refused(*_arguments: object, errno: enum.IntEnum = errno, name: str = number.name) -> int:
                raise XenError(errno, f"{name} is not for a plain domU")

            self.handlers[number] = refused
            SUBOPERATIONS.setdefault(self.hypercall, []).append(
                SubOperation(self.hypercall, number, number.name.lower(), Status.REFUSED, errno.name)
            )


def _compat_types(entry: Entry) -> tuple[tuple[str, str], ...]:
    return entry.arguments if entry.compat is None else entry.compat


def invoke_compat(entry: Entry, call: Any, words: Sequence[int]) -> int:
    """Call a handler for a 32-bit guest, whose arguments are words: a `u64` takes two, the low half first."""
    values: list[int] = []
    at = 0
    for _, kind in _compat_types(entry):
        value = words[at] & MASK32
        if kind == "u64":
            value |= (words[at + 1] & MASK32) << 32
            at += 1
        values.append(value)
        at += 1
    return entry.handler(call, *values)


def compat_words(entry: Entry, values: Sequence[int]) -> list[int]:
    """The words in which a 32-bit guest passes these arguments: what `invoke_compat` takes apart."""
    words: list[int] = []
    for (_, kind), value in zip(_compat_types(entry), values, strict=False):
        words.append(value & MASK32)
        if kind == "u64":
            words.append(value >> 32 & MASK32)
    return words


def invoke(entry: Entry, call: Any, arguments: tuple[int, ...]) -> int:
    """Call a handler with as many arguments as it declares, each cut to its width."""
    masks = entry.masks
    count = len(masks)
    if count == 2:
        return entry.handler(call, arguments[0] & masks[0], arguments[1] & masks[1])
    if count == 4:
        return entry.handler(
            call, arguments[0] & masks[0], arguments[1] & masks[1], arguments[2] & masks[2],
            arguments[3] & masks[3],
        )  # fmt: skip
    return entry.handler(call, *[value & mask for value, mask in zip(arguments, masks, strict=False)])
