# SPDX-License-Identifier: GPL-2.0-only
"""Data classes that nobody changes once they are made.

    @frozen
    class Segment:
        base: int
        limit: int

is a data class with slots, compared and hashed by its fields. That nobody assigns to a field is for mypy to
see, which takes the class for a frozen one. At run time only `__init__` is generated for it: what a frozen
data class has besides takes the interpreter half a millisecond to generate, for each class, at each start.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, dataclass_transform, overload

_C = TypeVar("_C", bound=type)


@overload
def frozen(made: _C, /) -> _C: ...


@overload
def frozen(*, kw_only: bool = False, slots: bool = True, by_identity: bool = False) -> Callable[[_C], _C]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def frozen(
    made: Any = None, /, *, kw_only: bool = False, slots: bool = True, by_identity: bool = False
) -> Any:
    """Make a class a frozen one. What it defines itself of comparison, hash and representation stays.

    With `by_identity` an object equals itself alone; without `slots` it may have attributes besides.
    """

    def make(found: type) -> type:
        for name, method in () if by_identity else _METHODS.items():
            if name not in vars(found):
                setattr(found, name, method)
        return dataclasses.dataclass(repr=False, eq=False, slots=slots, kw_only=kw_only)(found)

    return make if made is None else make(made)


def _values(one: Any) -> tuple[Any, ...]:
    return tuple(getattr(one, field.name) for field in dataclasses.fields(one) if field.compare)


def _equal(one: object, other: object) -> bool:
    if one.__class__ is not other.__class__:
        return NotImplemented  # type: ignore[no-any-return]
    return bool(_values(one) == _values(other))


def _hash(one: object) -> int:
    return hash(_values(one))


def _shown(one: Any) -> str:
    fields = (field for field in dataclasses.fields(one) if field.repr)
    inner = ", ".join(f"{field.name}={getattr(one, field.name)!r}" for field in fields)
    return f"{type(one).__qualname__}({inner})"


_METHODS: Final[Mapping[str, Callable[..., object]]] = {
    "__eq__": _equal,
    "__hash__": _hash,
    "__repr__": _shown,
}
