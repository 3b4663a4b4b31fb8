# SPDX-License-Identifier: GPL-2.0-only
"""State as plain data: how an object says all that a guest can see or feel of it, and is rebuilt from that.

*Plain* is what any container can hold: booleans, integers, text, bytes, lists, dictionaries with names as
keys, and None. Each attribute of an object plays one of three roles:

    state    it is said and restored
    given    a reference that whoever builds the object hands in: RAM, a clock, an owner
    cache    it follows from state or is none of the guest's business; restoring sets it to its default

A dataclass says so field by field: a field is state unless it is declared with `given` or `cache`, which want
a reason. Its types are taken from the annotations, those of `abi/layout.py` (`u64` ...) with their ranges:
what does not fit is a `StateError` that names the field, so saved state may come from anybody. A number with
other bounds is an `Annotated[int, range(...)]`; lists and bytes of fixed length are an
`Annotated[list[u64], 4]` and an `Annotated[bytes, 16]`.

Any other class has the methods `state()` and `restore(saved)`, and names the attributes that it leaves out in
a class variable `NOT_STATE`, attribute to reason; a class with nothing but that is said by the one that owns
its objects. A field that holds one or the other kind of object is a *part* and is restored in place, since
others hold references to it.

    @dataclass(slots=True)
    class Stack:
        ss: u16 = 0
        sp: u64 = 0
        page: int = cache("machine address of the page that `sp` is in", default=-1)

>>> from pyhv.abi.layout import u16
>>> @dataclass(slots=True)
... class Stack:
...     ss: u16 = 0
...     page: int = cache("where the page is", default=-1)
>>> state(Stack(0x2B))
{'ss': 43}
>>> restore(Stack(), {"ss": 0x1_0000})
Traceback (most recent call last):
pyhv.errors.StateError: Saved state is not valid: ss is 65536, which is not in 0..65535.
"""

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from pyhv.errors import StateError

Plain: TypeAlias = "bool | int | str | bytes | list[Plain] | dict[str, Plain] | None"
"""What state consists of."""
Said = Annotated[Any, None]
"""Plain data of any form: what another object has said, which that one will check."""
Nanoseconds = Annotated[int, range(1 << 62)]
"""A time, or how long something takes: so far below what 64 bits hold that sums of them fit as well."""
MOST_TALLY: Final = (1 << 62) - 1
Tally = Annotated[int, range(MOST_TALLY + 1)]
"""A count that only grows: none comes near its end, and one from a file leaves room to count on."""
_T = TypeVar("_T")
_ROLE: Final = "pyhv role"


class Role(enum.Enum):
    """What an attribute is to its object's state."""

    STATE = "state"
    GIVEN = "given"
    CACHE = "cache"


class Explained(NamedTuple):
    """An attribute's role and, unless it is state, the reason for that."""

    role: Role
    reason: str = ""


@runtime_checkable
class Stateful(Protocol):
    """An object that is no dataclass and says its own state."""

    NOT_STATE: ClassVar[Mapping[str, str]]

    def state(self) -> dict[str, Plain]:
        """Its state by attribute, without leading underscores."""

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Take state over; StateError."""


def given(reason: str) -> Any:
    """A dataclass field that its builder provides, and that is no state."""
    return dataclasses.field(metadata={_ROLE: Explained(Role.GIVEN, reason)}, repr=False, compare=False)


def cache(reason: str, **default: Any) -> Any:
    """A dataclass field that is no state; `default` or `default_factory` say what it is restored to."""
    return dataclasses.field(
        **default, metadata={_ROLE: Explained(Role.CACHE, reason)}, init=False, repr=False, compare=False
    )


# -- saying and restoring ----------------------------------------------------------------------------------


def state(thing: object) -> dict[str, Plain]:
    """All state of a dataclass or `Stateful`, as plain data that shares nothing with it."""
    if dataclasses.is_dataclass(thing):
        return {name: form.say(getattr(thing, name)) for name, form in _forms(type(thing)).items()}
    if isinstance(thing, Stateful):
        return thing.state()
    raise TypeError(f"{type(thing).__name__} does not say its state")


def restore(thing: object, saved: Plain, where: str = "") -> None:
    """Give an object the state that was saved; its parts stay the same objects. StateError."""
    if not dataclasses.is_dataclass(thing):
        assert isinstance(thing, Stateful), thing
        try:
            thing.restore(entries(saved, where))
        except StateError as error:
            raise refusal(_within(where, error.where), error.why) from None
        return
    forms = _forms(type(thing))
    found = entries(saved, where, forms)
    for name, form in forms.items():
        part = getattr(thing, name)
        if form.in_place and part is not None and found[name] is not None:
            restore(part, found[name], _within(where, name))
        else:
            setattr(thing, name, form.read(found[name], _within(where, name)))
    for field in dataclasses.fields(thing):
        if _role(field).role is Role.CACHE:
            setattr(thing, field.name, _default(field))


def construct(kind: type[_T], saved: Plain, where: str = "", **given: object) -> _T:
    """A new object of a dataclass with the state that was saved; StateError."""
    forms = _forms(kind)
    found = entries(saved, where, forms)
    values = {name: form.read(found[name], _within(where, name)) for name, form in forms.items()}
    return kind(**values, **given)


def say(kind: Any, value: object) -> Plain:
    """A value of any type that a field may have."""
    return _form(kind).say(value)


def typed(kind: type[_T], saved: Plain, where: str) -> _T:
    """A value of any type that a field may have; StateError."""
    value: _T = _form(kind).read(saved, where)
    return value


def entries(saved: Plain, where: str, names: Mapping[str, object] | None = None) -> dict[str, Plain]:
    """Saved state as a dictionary with exactly the keys of `names`; StateError."""
    if not isinstance(saved, dict) or not all(isinstance(key, str) for key in saved):
        raise refusal(where, "is not a table of names")
    if names is not None and saved.keys() != names.keys():
        odd = sorted(saved.keys() ^ names.keys())
        raise refusal(where, f"should not have, or lacks, {', '.join(map(repr, odd[:4]))}")
    return saved


def items(saved: Plain, where: str, count: int | None = None) -> list[Plain]:
    """Saved state as a list, of `count` items if that is given; StateError."""
    if not isinstance(saved, list) or (count is not None and len(saved) != count):
        raise refusal(where, "is not a list" if count is None else f"is not a list of {count}")
    return saved


def refusal(where: str, why: str) -> StateError:
    """The error for saved state that cannot be: `why` continues a sentence that begins with the place."""
    return StateError(where, why)


# -- roles -------------------------------------------------------------------------------------------------


def roles(kind: type) -> dict[str, Explained]:
    """The attributes that a class explains: all fields of a dataclass, else those that are no state."""
    if dataclasses.is_dataclass(kind):
        return {field.name: _role(field) for field in dataclasses.fields(kind)}
    left_out: Mapping[str, str] = getattr(kind, "NOT_STATE", {})
    return {name: Explained(Role.CACHE, reason) for name, reason in left_out.items()}


def unexplained(thing: object) -> list[str]:
    """Attributes of an object that are neither state nor left out for a reason: there should be none."""
    known = set(roles(type(thing)))
    if not dataclasses.is_dataclass(thing) and isinstance(thing, Stateful):
        said = thing.state()
        known |= {*said, *(f"_{name}" for name in said)}
    return sorted(name for name in _attributes(thing) if name not in known)


def _attributes(thing: object) -> Iterator[str]:
    yield from getattr(thing, "__dict__", ())
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        yield from (name for name in ([slots] if isinstance(slots, str) else slots) if hasattr(thing, name))


def _role(field: "dataclasses.Field[Any]") -> Explained:
    explained: Explained = field.metadata.get(_ROLE, Explained(Role.STATE))
    return explained


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _within(where: str, name: object) -> str:
    return ".".join(part for part in (where, str(name)) if part)


# -- types -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """How values of one annotation are said and read; a part is also restored in place."""

    say: Callable[[Any], Plain]
    read: Callable[[Plain, str], Any]
    in_place: bool = False


def _forms(kind: Any) -> dict[str, _Form]:
    """The state fields of a dataclass."""
    return _resolved(kind)


@functools.cache
def _resolved(kind: Any) -> dict[str, _Form]:
    """`_forms`, worked out once for the whole process: a class and its annotations never change."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    return {field.name: _form(hints[field.name]) for field in fields if _role(field).role is Role.STATE}


def _form(hint: Any) -> _Form:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, bound = arguments[:2]
        if bound is None:
            return _Form(_same, lambda saved, _where: saved)
        if kind is bytes:
            return _bytes_of_length(bound)
        return _of_length(_form(kind), bound) if isinstance(bound, int) else _whole_number(bound)
    if isinstance(hint, typing.NewType):
        return _form(hint.__supertype__)
    if origin in (typing.Union, types.UnionType):
        return _optional(arguments)
    if origin is not None:
        return _collection(origin, arguments)
    if hint in (int, bool, str, bytes, bytearray):
        return _scalar(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _Form(lambda value: value.value, functools.partial(_read_enum, hint))
    if isinstance(hint, type) and issubclass(hint, tuple):
        return _named_tuple(hint)
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or hasattr(hint, "NOT_STATE")):
        fixed = dataclasses.is_dataclass(hint) and hint.__dataclass_params__.frozen  # type: ignore[attr-defined]
        return _Form(state, functools.partial(construct, hint), in_place=not fixed)
    raise TypeError(f"{hint} cannot be state")


def _scalar(kind: type) -> _Form:
    stored = bytes if kind is bytearray else kind

    def read(saved: Plain, where: str) -> Any:
        if type(saved) is not stored:
            raise refusal(where, f"is not of the type {stored.__name__}")
        return kind(saved)  # a copy of what is mutable

    # A member of an enumeration may stand for its number.
    return _Form(stored if kind in (bytearray, int) else _same, read)


def _same(value: Any) -> Any:
    return value


def _whole_number(bound: str | range) -> _Form:
    """An integer within a range, or of the ABI, by its format character."""
    if isinstance(bound, range):
        low, high = bound[0], bound[-1]
    else:
        bits = {"b": 8, "h": 16, "i": 32, "q": 64}[bound.lower()]
        low, high = (-1 << bits - 1, (1 << bits - 1) - 1) if bound.islower() else (0, (1 << bits) - 1)

    def read(saved: Plain, where: str) -> int:
        if type(saved) is not int:
            raise refusal(where, "is not of the type int")
        if not low <= saved <= high:
            raise refusal(where, f"is {saved}, which is not in {low}..{high}")
        return saved

    return _Form(int, read)


def _of_length(form: _Form, count: int) -> _Form:
    return _Form(form.say, lambda saved, where: form.read(items(saved, where, count), where))


def _bytes_of_length(count: int) -> _Form:
    def read(saved: Plain, where: str) -> bytes:
        if type(saved) is not bytes or len(saved) != count:
            raise refusal(where, f"is not {count} bytes")
        return saved

    return _Form(bytes, read)


def _optional(arguments: tuple[Any, ...]) -> _Form:
    (kind,) = (argument for argument in arguments if argument is not types.NoneType)
    form = _form(kind)
    return _Form(
        lambda value: None if value is None else form.say(value),
        lambda saved, where: None if saved is None else form.read(saved, where),
        form.in_place,
    )


def _read_enum(kind: type[enum.Enum], saved: Plain, where: str) -> enum.Enum:
    try:
        return kind(saved)
    except ValueError:
        raise refusal(where, f"is no {kind.__name__}") from None


def _collection(origin: Any, arguments: tuple[Any, ...]) -> _Form:
    if origin is dict:
        return _dictionary(*(_form(argument) for argument in arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return _record(tuple, [_form(argument) for argument in arguments])
    if origin not in (list, tuple, set, frozenset):
        raise TypeError(f"{origin} cannot be state")
    form = _form(arguments[0])
    ordered: Callable[[Any], Any] = sorted if origin in (set, frozenset) else _same

    def read(saved: Plain, where: str) -> Any:
        found = items(saved, where)
        return origin(form.read(item, _within(where, number)) for number, item in enumerate(found))

    return _Form(lambda value: [form.say(item) for item in ordered(value)], read)


def _dictionary(key: _Form, value: _Form) -> _Form:
    """A dictionary, in its order: a list of pairs, since keys may be tuples."""
    pair = _record(tuple, [key, value])

    def read(saved: Plain, where: str) -> Any:
        found = items(saved, where)
        return dict(pair.read(item, _within(where, number)) for number, item in enumerate(found))

    return _Form(lambda held: [pair.say(item) for item in held.items()], read)


def _record(kind: Callable[[Iterator[Any]], Any], forms: list[_Form]) -> _Form:
    def say(value: Any) -> list[Plain]:
        return [form.say(item) for form, item in zip(forms, value, strict=True)]

    def read(saved: Plain, where: str) -> Any:
        found = items(saved, where, len(forms))
        return kind(
            form.read(item, _within(where, at))
            for at, (form, item) in enumerate(zip(forms, found, strict=True))
        )

    return _Form(say, read)


def _named_tuple(kind: Any) -> _Form:
    hints = typing.get_type_hints(kind, include_extras=True)
    return _record(lambda items: kind(*items), [_form(hint) for hint in hints.values()])
