# SPDX-License-Identifier: GPL-2.0-only
"""How handlers get into the table, and their arguments out of registers."""

import enum

import pytest

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, Sched
from pyhv.errors import XenError
from pyhv.hypercalls import table
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.hypercalls.signature import Ptr, form_of, u32, u64, ulong
from pyhv.hypercalls.table import Commands, Status, hypercall

ONES = [(1 << 64) - 1] * 6


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables without a handler, for the time of a test."""
    monkeypatch.setattr(table, "HYPERCALLS", [None] * 64)
    monkeypatch.setattr(table, "COMMANDS", {})


seen: list[tuple[int, ...]] = []


def all_types(_call: Call, a: u32, b: u64, c: ulong, d: Ptr) -> int:
    seen.append((a, b, c, d))
    return 7


def five(_call: Call, a: u32, b: u32, c: u32, d: u32, e: ulong) -> int:
    seen.append((a, b, c, d, e))
    return 5


def none(_call: Call) -> int:
    return 1


def call() -> Call:
    return Call.__new__(Call)


@pytest.mark.parametrize(("width", "expected"), [
    (64, (0xFFFF_FFFF, (1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 1)),
    (32, (0xFFFF_FFFF, (1 << 64) - 1, 0xFFFF_FFFF, 0xFFFF_FFFF)),
])  # fmt: skip
def test_each_argument_has_the_width_of_its_type(width: int, expected: tuple[int, ...]) -> None:
    seen.clear()
    assert form_of(all_types, width).invoke(call(), *ONES) == 7
    assert seen == [expected]


def test_five_arguments_and_none() -> None:
    seen.clear()
    assert form_of(five, 64).invoke(call(), *ONES) == 5
    assert seen == [(0xFFFF_FFFF,) * 4 + ((1 << 64) - 1,)]
    assert form_of(none, 64).invoke(call(), *ONES) == form_of(none, 32).invoke(call(), *ONES) == 1


@pytest.mark.parametrize("width", [64, 32])
def test_words_are_what_invoke_takes_apart(width: int) -> None:
    seen.clear()
    form = form_of(all_types, width)
    values = (1, 0x2222_2222_3333_3333, 0x4444_4444, 0x5555_5555)
    form.invoke(call(), *(*form.words(values), 0, 0)[:6])
    assert seen == [values]
    assert form.words(values) == (
        list(values) if width == 64 else [1, 0x3333_3333, 0x2222_2222, 0x4444_4444, 0x5555_5555]
    )


def test_an_argument_without_a_width_is_refused(empty: None) -> None:
    def untyped(_call: Call, a: int) -> int:
        return a

    def uncalled(a: u32) -> int:
        return a

    with pytest.raises(TypeError, match="a must be u32, ulong, u64 or Ptr"):
        hypercall(Hypercall.MCA)(untyped)
    with pytest.raises(TypeError, match="the first argument of a handler is the Call"):
        hypercall(Hypercall.MCA)(uncalled)  # type: ignore[arg-type]


def test_a_second_handler_of_a_hypercall_is_refused(empty: None) -> None:
    hypercall(Hypercall.MCA, Status.REFUSED)(none)
    with pytest.raises(ValueError, match=r"MCA is handled in .*test_hypercall_table and again in"):
        hypercall(Hypercall.MCA)(none)
    entry = table.HYPERCALLS[Hypercall.MCA]
    assert entry is not None
    assert entry.status is Status.REFUSED, "the first one stays"


def test_a_second_handler_of_a_sub_operation_is_refused(empty: None) -> None:
    commands = Commands[[int], int](Hypercall.SCHED_OP, Sched)
    commands.refuse(Sched.BLOCK, Errno.EPERM, "For a test.")

    def block(_call: Call, _argument: int) -> int:
        return 0

    with pytest.raises(ValueError, match="SCHED_OP has a handler of BLOCK already"):
        commands.command(Sched.BLOCK)(block)
    with pytest.raises(ValueError, match="SCHED_OP has its commands already"):
        Commands[[int], int](Hypercall.SCHED_OP, Sched)


def test_a_command_of_another_hypercall_is_refused(empty: None) -> None:
    class Other(enum.IntEnum):
        ONE = 1

    commands = Commands[[int], int](Hypercall.SCHED_OP, Sched)
    with pytest.raises(TypeError, match="no command of SCHED_OP"):
        commands.refuse(Other.ONE, Errno.EPERM, "For a test.")


def test_what_is_missing_is_enosys_and_stays_missing(empty: None) -> None:
    commands = Commands[[int], int](Hypercall.SCHED_OP, Sched)
    for _ in range(2):
        with pytest.raises(XenError) as refusal:
            commands[99](call(), 0)
        assert refusal.value.errno == Errno.ENOSYS
    assert not commands


def test_the_registry_has_them_all() -> None:
    assert all(HYPERCALLS[number] is not None for number in Hypercall)
