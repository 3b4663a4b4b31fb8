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
from dataclasses import dataclass
from typing import Annotated

from pyhv.address import MASK32, MASK64
from pyhv.hypercalls.context import Call


@dataclass(frozen=True, slots=True)
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

Invoke = Callable[[Call, Sequence[int]], int]
"""Calls a handler with the registers that hold arguments, all of them, in their order."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a hypercall."""

    name: str
    type: ArgumentType


@dataclass(frozen=True, slots=True)
class Form:
    """A hypercall as guests of one width make it."""

    width: int
    arguments: tuple[Argument, ...]
    invoke: Invoke

    def words(self, values: Sequence[int]) -> list[int]:
        """The registers' words that `invoke` takes apart into `values`, to make a call again."""
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
    if width == 32 and any(argument.type.bits32 == 64 for argument in arguments):
        return Form(width, arguments, _paired(handler, arguments))
    bits = [argument.type.bits64 if width == 64 else argument.type.bits32 for argument in arguments]
    return Form(width, arguments, _masked(handler, [(1 << count) - 1 for count in bits]))


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


def _masked(handler: Callable[..., int], masks: Sequence[int]) -> Invoke:
    """One register for each argument. Spelt out: a loop would cost as much as a short hypercall does."""
    match masks:
        case []:
            return lambda call, _words: handler(call)
        case [a]:
            return lambda call, words: handler(call, words[0] & a)
        case [a, b]:
            return lambda call, words: handler(call, words[0] & a, words[1] & b)
        case [a, b, c]:
            return lambda call, words: handler(call, words[0] & a, words[1] & b, words[2] & c)
        case [a, b, c, d]:
            return lambda call, words: handler(
                call, words[0] & a, words[1] & b, words[2] & c, words[3] & d
            )  # fmt: skip
        case _:
            return lambda call, words: handler(
                call, *[word & mask for word, mask in zip(words, masks, strict=False)]
            )  # fmt: skip


def _paired(handler: Callable[..., int], arguments: tuple[Argument, ...]) -> Invoke:
    """As a 32-bit guest passes them: 64 bits come in two registers, the low half first."""

    def invoke(call: Call, words: Sequence[int]) -> int:
        values: list[int] = []
        left = iter(words)
        for argument in arguments:
            value = next(left) & MASK32
            if argument.type.bits32 == 64:
                value |= (next(left) & MASK32) << 32
            values.append(value)
        return handler(call, *values)

    return invoke
