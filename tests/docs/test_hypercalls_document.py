# SPDX-License-Identifier: GPL-2.0-only
"""The hypercall table, and what is generated from it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docgen import hypercalls, numbers
from pyhv.abi.errno import Errno
from pyhv.abi.grants import GrantStatus
from pyhv.abi.numbers import NR_HYPERCALLS, Hypercall, MemoryOp
from pyhv.hypercalls.registry import COMMANDS, HYPERCALLS
from pyhv.hypercalls.table import Entry, Status, SubOperation
from pyhv.testing.guest_machine import UNMAPPED, Paused, paused
from pyhv.testing.verbs import Verbs

ROOT = Path(__file__).parents[2]
ENTRIES = [entry for entry in HYPERCALLS if entry is not None]
OPERATIONS = [operation for commands in COMMANDS.values() for operation in commands.operations.values()]


@pytest.mark.promise("C-3")
def test_the_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "hypercalls.md"
    assert page.read_text(encoding="utf-8") == hypercalls.document(), "run: make docs"


def test_the_numbers_of_kernels_in_assembly_are_up_to_date() -> None:
    include = ROOT / "pyhv" / "guests" / "hypercalls.inc"
    assert include.read_text(encoding="utf-8") == numbers.document(), "run: make docs"


@pytest.mark.promise("C-3")
def test_numbers_and_names_agree_with_the_table() -> None:
    assert len(HYPERCALLS) == NR_HYPERCALLS
    assert {entry.number for entry in ENTRIES} == set(Hypercall), "each has a handler"
    assert all(HYPERCALLS[entry.number] is entry for entry in ENTRIES)
    for number, commands in COMMANDS.items():
        assert commands.hypercall is number
        assert {operation.number for operation in commands.operations.values()} == set(commands.numbers)
        assert commands.keys() == commands.operations.keys()


@pytest.mark.promise("C-3")
@pytest.mark.parametrize("row", [*ENTRIES, *OPERATIONS], ids=lambda row: row.number.name.lower())
def test_each_says_what_it_does(row: Entry | SubOperation) -> None:
    summary = row.text.strip().partition("\n")[0]
    assert re.fullmatch(r"[A-Z`].{14,}", summary), summary


@pytest.mark.promise("C-3")
@pytest.mark.parametrize("row", [*ENTRIES, *OPERATIONS], ids=lambda row: row.number.name.lower())
def test_errors_are_errnos_and_refusals_name_theirs(row: Entry | SubOperation) -> None:
    named = set(re.findall(r"\bE[A-Z0-9]{3,}\b", row.text))
    statuses = set(GrantStatus.__members__) | {"E820"}
    assert named <= set(Errno.__members__) | statuses, named
    assert row.status is not Status.REFUSED or named or row.text.rstrip().endswith("No errno.")


def test_what_is_partial_says_so() -> None:
    rows: list[Entry | SubOperation] = [*ENTRIES, *OPERATIONS]
    assert [row.number.name for row in rows if row.status is Status.PARTIAL] == []


# -- what the page says in general, held against the handlers ----------------------------------------------

DONE_BEFORE = {MemoryOp.INCREASE_RESERVATION, MemoryOp.DECREASE_RESERVATION, MemoryOp.POPULATE_PHYSMAP}
"""They return how many extents were done, and never an error."""
WITH_STRUCTURE = [
    pytest.param(commands.hypercall, operation.number, id=operation.number.name.lower())
    for commands in COMMANDS.values()
    for operation in commands.operations.values()
    if operation.structure is not None
]


@pytest.fixture(scope="module")
def guest() -> Iterator[Paused]:
    with paused() as made:
        yield made


@pytest.mark.parametrize(("hypercall", "command"), WITH_STRUCTURE)
def test_a_structure_that_cannot_be_read_is_efault(guest: Paused, hypercall: Hypercall, command: int) -> None:
    before = (0,) if hypercall is Hypercall.VCPU_OP else ()
    expected = 0 if hypercall is Hypercall.MEMORY_OP and command in DONE_BEFORE else -Errno.EFAULT
    assert guest.call(hypercall, command, *before, UNMAPPED, 1) == expected


@pytest.mark.parametrize("hypercall", [number for number in COMMANDS if number is not Hypercall.MMUEXT_OP])
def test_a_command_that_is_not_listed_is_enosys(guest: Paused, hypercall: Hypercall) -> None:
    known = set(COMMANDS[hypercall].numbers)
    for command in (*sorted(set(range(64)) - known), 0xFFF):
        assert guest.call(hypercall, command, 0, guest.scratch, 1) == -Errno.ENOSYS, command


def test_each_hypercall_that_is_not_refused_is_a_method_of_the_tests() -> None:
    offered = {entry.name for entry in ENTRIES if entry.status is not Status.REFUSED}
    assert {name for name in offered if not hasattr(Verbs, name)} == {"iret"}, "which is Paused.iret"
