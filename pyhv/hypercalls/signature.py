# SPDX-License-Identifier: GPL-2.0-only
"""From registers to a handler's arguments: what the types in its signature say about either width.

    def update_va_mapping(call: Call, va: ulong, pte: u64, flags: ulong) -> int:

takes three registers from a 64-bit guest and four from a 32-bit one, whose `pte` comes in two, the low half
first. A `u32` ignores the upper half of its register, as the ABI's C types do. To the handler all are `int`,
already cut to size. This module knows neither numbers nor names of hypercalls, and no register by its name.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Final

from pyhv.address import MASK32, MASK64
from pyhv.frozen import frozen
from pyhv.hypercalls.context import Call


@frozen
class ArgumentType:
    """A C type of the hypercalls: its name, and how many bits of it guests of either width pass."""

    name: str
    bits64: int
    bits32: int


u32 = Annotated[int, ArgumentType("u32", 32, 32)]
ulong = Annotated[int, ArgumentType("ulong", 64, 32)]
u64 = Annotated[int, ArgumentType("u64", 64, 64)]
Ptr = Annotated[int, ArgumentType("ptr", 64, 32)]
"""The types that a handler's signature may name. `Ptr` is an address of the guest's, not yet looked at."""

_SPELT_OUT: Final = 5
"""Arguments of a hypercall, at most; in a 32-bit guest's six words if one of them has 64 bits."""


@frozen
class Argument:
    """One argument of a hypercall."""

    name: str
    type: ArgumentType


class Form:
    """A hypercall as guests of one width make it: its handler, and which bits of which words it is given."""

    def __init__(self, width: int, handler: Callable[..., int], arguments: tuple[Argument, ...]) -> None:
        self.width = width
        self.handler = handler
        self.arguments = arguments
        bits = [argument.type.bits64 if width == 64 else argument.type.bits32 for argument in arguments]
        self._is_paired = width == 32 and 64 in bits
        self._count = len(bits)
        masks = [(1 << count) - 1 for count in (*bits, 0, 0, 0, 0, 0)[:_SPELT_OUT]]
        self._mask_a, self._mask_b, self._mask_c, self._mask_d, self._mask_e = masks

    def invoke(self, call: Call, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
        """Call the handler with the words that hold arguments, in their order; those left over say nothing.

        Spelt out: a loop would cost as much as a short hypercall does.
        """
        count, handler = self._count, self.handler
        if self._is_paired:
            return handler(call, *self._joined((a, b, c, d, e, f)))
        if count == 2:
            return handler(call, a & self._mask_a, b & self._mask_b)
        if count == 4:
            return handler(call, a & self._mask_a, b & self._mask_b, c & self._mask_c, d & self._mask_d)
        if count == 3:
            return handler(call, a & self._mask_a, b & self._mask_b, c & self._mask_c)
        if count == 1:
            return handler(call, a & self._mask_a)
        if count == 0:
            return handler(call)
        return handler(
            call, a & self._mask_a, b & self._mask_b, c & self._mask_c, d & self._mask_d, e & self._mask_e
        )

    def _joined(self, words: Sequence[int]) -> list[int]:
        """Arguments as a 32-bit guest passes them: 64 bits come in two words, the low half first."""
        values: list[int] = []
        left = iter(words)
        for argument in self.arguments:
            value = next(left) & MASK32
            if argument.type.bits32 == 64:
                value |= (next(left) & MASK32) << 32
            values.append(value)
        return values

    def words(self, values: Sequence[int]) -> list[int]:
        """The words that `invoke` takes apart into `values`, to make a call again."""
        if self.width == 64:
            return [value & MASK64 for value in values]
        words: list[int] = []
        for argument, value in zip(self.arguments, values, strict=False):
            words.append(value & MASK32)
            if argument.type.bits32 == 64:
                words.append(value >> 32 & MASK32)
        return words


def form_of(handler: Callable[..., int], width: int) -> Form:
    """How guests of `width` bits call a handler, by its signature. TypeError for one that is none."""
    arguments = _arguments(handler)
    if len(arguments) > _SPELT_OUT:
        raise TypeError(f"{handler.__qualname__}: a hypercall has {_SPELT_OUT} arguments at most")
    return Form(width, handler, arguments)


@functools.cache
def _arguments(handler: Callable[..., int]) -> tuple[Argument, ...]:
    """What a handler takes besides the call, the same for either width."""
    first, *names = inspect.signature(handler).parameters
    hints = typing.get_type_hints(handler, include_extras=True)
    if hints[first] is not Call:
        raise TypeError(f"{handler.__qualname__}: the first argument of a handler is the Call")
    return tuple(Argument(name.strip("_"), _type_of(handler, name, hints[name])) for name in names)


def _type_of(handler: Callable[..., int], name: str, hint: object) -> ArgumentType:
    for note in typing.get_args(hint)[1:]:
        if isinstance(note, ArgumentType):
            return note
    raise TypeError(f"{handler.__qualname__}: {name} must be u32, ulong, u64 or Ptr")
