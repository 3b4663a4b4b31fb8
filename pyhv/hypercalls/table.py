# SPDX-License-Identifier: GPL-2.0-only
"""The hypercall table: number, name, arguments, handler and status of each (public header `xen.h`).

A handler is a function `(call, arguments...) -> int` that raises `XenError`; the decorator puts it into the
table, from which come dispatch, trace names, statistics and `docs/hypercalls.md`. Arguments are declared as
`name:type`; `u32` and `s32` ignore the upper half of the register, as the ABI's C types do. Sub-operations
are declared by `suboperations` on a handler's own dispatch table.

A number that is not in the table returns ENOSYS, as on Xen.
"""

import enum
from collections.abc import Callable, Mapping
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
    """One hypercall. `masks` cut each argument to its type's width."""

    number: int
    name: str
    arguments: tuple[tuple[str, str], ...]
    masks: tuple[int, ...]
    handler: Handler
    status: Status
    note: str


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
    number: int, name: str, arguments: str, status: Status = Status.COMPLETE, note: str = ""
) -> Callable[[Handler], Handler]:
    """Enter a handler into the table."""

    def enter(handler: Handler) -> Handler:
        pairs = [argument.split(":") for argument in arguments.split()]
        declared = tuple((pair[0], pair[1]) for pair in pairs)
        masks = tuple(_MASKS[kind] for _, kind in declared)
        HYPERCALLS[number] = Entry(number, name, declared, masks, handler, status, note)
        return handler

    return enter


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
