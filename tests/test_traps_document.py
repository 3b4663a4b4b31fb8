# SPDX-License-Identifier: GPL-2.0-only
"""The page on the guests' processor, and the tables that it is generated from."""

import itertools
from pathlib import Path

from pyhv.abi.x86 import Msr
from pyhv.traps.document import document
from pyhv.traps.msr import TABLE

PAGE = Path(__file__).parent.parent / "docs" / "cpu.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), "run: python -m pyhv.traps.document > docs/cpu.md"


def test_msrs_are_in_order_and_listed_once() -> None:
    bounds = [(row.first, row.last) for row in TABLE]
    assert all(first <= last for first, last in bounds)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(bounds))
    listed = {number for first, last in bounds for number in range(first, last + 1)}
    assert {int(number) for number in Msr} <= listed


def test_what_refuses_says_so() -> None:
    for row in TABLE:
        assert (row.read is None) == (row.reads == "#GP"), row.name
        assert row.write is not None or row.writes == "#GP", row.name
