# SPDX-License-Identifier: GPL-2.0-only
"""Random programs that modify code: on engines with and without tuning they compute what memory says."""

import random

import pytest

from fuzz.smc import Smc
from fuzz.target import Finding

PROGRAMS = 200


def program(seed: int) -> bytes:
    chance = random.Random(seed)
    return chance.randbytes(chance.randrange(100, Smc.max_length))


@pytest.mark.promise("C-14")
def test_random_programs_run_no_old_code() -> None:
    target = Smc()
    for seed in range(PROGRAMS):
        target.run(program(seed))
    assert target.calls > 30 * PROGRAMS


def wrong(target: Smc, seed: int) -> str:
    """What is wrong with a program, if anything."""
    try:
        target.run(program(seed))
    except Finding as finding:
        return str(finding)
    return ""


def test_the_plain_engine_runs_old_code_where_nobody_watches() -> None:
    target = Smc()
    target.watched = False
    found = [what for what in (wrong(target, seed) for seed in range(20)) if what]
    assert len(found) >= 5
    assert all("old code ran" in what and "(plain" in what for what in found)
