# SPDX-License-Identifier: GPL-2.0-only
"""The hypercall table: who handles which number, and which of its sub-operations (public header `xen.h`).

A handler is a function `(call, arguments...) -> int` that raises `XenError`. A decorator puts it into the
table, from which come dispatch, `docs/hypercalls.md` and the calls of the tests:

    @hypercall(Hypercall.VCPU_OP)
    def vcpu_op(call: Call, command: u32, number: u32, argument: Ptr) -> int:
        return _commands[command](call, call.peer_vcpu(number), argument)

    @_commands.command(VcpuOp.REGISTER_VCPU_INFO, VcpuRegisterVcpuInfo)
    def register_vcpu_info(call: Call, vcpu: Vcpu, argument: int) -> int:

The types of the arguments say what is in the registers (`signature.py`); the docstring is the documentation:
what the call does, then its errors in the order in which they are checked. Two handlers for one number are a
mistake and end the import. A number that is in no table returns ENOSYS, as on Xen.
"""

import enum
from collections.abc import Callable
from typing import Any, Concatenate, Final, Generic, NoReturn, ParamSpec, TypeVar

from pyhv.abi.errno import Errno
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import NR_HYPERCALLS, Hypercall
from pyhv.errors import XenError
from pyhv.frozen import frozen
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.signature import Form, form_of


class Status(enum.Enum):
    """How much of a hypercall there is."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    REFUSED = "refused as Xen refuses it to a plain domU"


_P = ParamSpec("_P")
_R = TypeVar("_R", int, None)


@frozen
class Entry:
    """One hypercall: its number, its handler, and its form for guests of either width."""

    number: Hypercall
    status: Status
    handler: Callable[..., int]
    wide: Form
    narrow: Form

    @property
    def text(self) -> str:
        """The handler's docstring."""
        return self.handler.__doc__ or ""

    @property
    def module(self) -> str:
        """Where the handler is."""
        return self.handler.__module__

    @property
    def name(self) -> str:
        """Xen's name, without `__HYPERVISOR_`."""
        return self.number.name.lower()

    def form(self, width: int) -> Form:
        """The form for guests of `width` bits."""
        return self.wide if width == 64 else self.narrow


HYPERCALLS: Final[list[Entry | None]] = [None] * NR_HYPERCALLS
"""By number; `registry` fills it."""


def hypercall(
    number: Hypercall, status: Status = Status.COMPLETE, *, compat: Callable[..., int] | None = None
) -> Callable[[Callable[Concatenate[Call, _P], int]], Callable[Concatenate[Call, _P], int]]:
    """Enter a handler into the table. `compat` is that of 32-bit guests if their arguments are others.

    ValueError for a number that has a handler already; TypeError for a signature that is none.
    """

    def enter(handler: Callable[Concatenate[Call, _P], int]) -> Callable[Concatenate[Call, _P], int]:
        found = HYPERCALLS[number]
        if found is not None:
            raise ValueError(f"{number.name} is handled in {found.module} and again in {handler.__module__}")
        wide, narrow = form_of(handler, 64), form_of(compat or handler, 32)
        HYPERCALLS[number] = Entry(number, status, handler, wide, narrow)
        return handler

    return enter


@frozen
class SubOperation:
    """One command of a multiplexed hypercall, for people; `structure` is what its argument points to."""

    number: enum.IntEnum
    status: Status
    structure: type[AbiStruct] | None
    text: str
    module: str | None
    """Where its handler is; None where the hypercall's is."""


class Commands(dict[int, Callable[Concatenate[Call, _P], _R]], Generic[_P, _R]):
    """The sub-operations of one hypercall: handlers by number. One that is missing is ENOSYS.

    `_P` are the handlers' arguments after the call, `_R` is what they return.
    """

    def __init__(self, hypercall: Hypercall, numbers: type[enum.IntEnum]) -> None:
        super().__init__()
        if hypercall in COMMANDS:
            raise ValueError(f"{hypercall.name} has its commands already")
        COMMANDS[hypercall] = self
        self.hypercall = hypercall
        self.numbers = numbers
        self.operations: dict[int, SubOperation] = {}

    def __missing__(self, command: int) -> NoReturn:
        raise XenError(Errno.ENOSYS, f"{self.hypercall.name.lower()} {command}")

    def command(
        self,
        number: enum.IntEnum,
        structure: type[AbiStruct] | None = None,
        status: Status = Status.COMPLETE,
    ) -> Callable[[Callable[Concatenate[Call, _P], _R]], Callable[Concatenate[Call, _P], _R]]:
        """Enter the handler of one sub-operation. ValueError for a number that has one already."""

        def enter(handler: Callable[Concatenate[Call, _P], _R]) -> Callable[Concatenate[Call, _P], _R]:
            text, module = handler.__doc__ or "", handler.__module__
            self._enter(SubOperation(number, status, structure, text, module), handler)
            return handler

        return enter

    def refuse(
        self, number: enum.IntEnum, errno: Errno, text: str, structure: type[AbiStruct] | None = None
    ) -> None:
        """Enter a sub-operation that always returns one errno; `text` stands for the docstring.

        A `structure` must be readable at the last argument, as Xen reads it first. EFAULT.
        """

        def refused(call: Call, /, *args: _P.args, **_kwargs: _P.kwargs) -> _R:
            if structure is not None:
                address = args[-1]
                assert isinstance(address, int)
                call.read(structure, address)
            raise XenError(errno, f"{number.name.lower()} is not for a plain domU")

        text = f"{text}\n\n{errno.name}."
        self._enter(SubOperation(number, Status.REFUSED, structure, text, None), refused)

    def _enter(self, operation: SubOperation, handler: Callable[Concatenate[Call, _P], _R]) -> None:
        number = operation.number
        if not isinstance(number, self.numbers):
            raise TypeError(f"{number!r} is no command of {self.hypercall.name}")
        if number in self:
            raise ValueError(f"{self.hypercall.name} has a handler of {number.name} already")
        self[number] = handler
        self.operations[number] = operation


COMMANDS: Final[dict[Hypercall, Commands[..., Any]]] = {}
"""The sub-operations by hypercall; `registry` fills it."""
