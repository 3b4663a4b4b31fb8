# SPDX-License-Identifier: GPL-2.0-only
"""The hypercall table, and the page that is generated from it."""

from pathlib import Path

from pyhv.hypercalls.document import document
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.hypercalls.table import SUBOPERATIONS, Status

PAGE = Path(__file__).parents[2] / "docs" / "hypercalls.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), (
        "run: python -m pyhv.hypercalls.document > docs/hypercalls.md"
    )


def test_numbers_and_names_agree_with_the_table() -> None:
    entries = [entry for entry in HYPERCALLS if entry is not None]
    assert all(HYPERCALLS[entry.number] is entry for entry in entries)
    assert len({entry.name for entry in entries}) == len(entries)
    assert set(SUBOPERATIONS) <= {entry.name for entry in entries}


def test_what_is_not_complete_says_why() -> None:
    for entry in HYPERCALLS:
        assert entry is None or entry.status is Status.COMPLETE or entry.note, entry.name
    for operations in SUBOPERATIONS.values():
        numbers = [operation.number for operation in operations]
        assert len(set(numbers)) == len(numbers)
        for operation in operations:
            assert operation.status is Status.COMPLETE or operation.note, operation.name


def test_calls_that_every_guest_needs() -> None:
    needed = {0, 1, 2, 3, 4, 5, 8, 9, 10, 12, 13, 14, 15, 17, 20, 21, 23, 24, 25, 26, 29, 30, 32, 33}
    assert all(HYPERCALLS[number] is not None for number in needed)
    assert all(HYPERCALLS[number] is None for number in (11, *range(43, 48), *range(49, 64)))
