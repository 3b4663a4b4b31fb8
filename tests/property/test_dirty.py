# SPDX-License-Identifier: GPL-2.0-only
"""No store of the hypervisor goes around the doors that note which frames were written."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fuzz.hypercalls import Hypercalls
from fuzz.target import watched
from fuzz.world import PAGES, Guest
from pyhv.cpu.ram import Ram
from pyhv.machine import Machine, MachineConfig

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"


def changed_unnoticed(ram: Ram, before: npt.NDArray[np.uint64]) -> tuple[int, int]:
    """How many frames are not as they were, and how many of them nobody has noted."""
    changed = np.flatnonzero((ram.tables != before).any(axis=1))
    return changed.size, int(np.count_nonzero(~np.isin(changed, ram.take_dirty())))


@pytest.mark.parametrize("width", [64, 32])
def test_a_domain_that_is_built_is_dirty(width: int) -> None:
    machine = Machine(MachineConfig(memory_pages=PAGES, virtual_time=True))
    ram = machine.ram
    before = ram.tables.copy()
    ram.take_dirty()
    Guest(machine, width, vcpus=2)
    changes, unnoticed = changed_unnoticed(ram, before)
    assert unnoticed == 0
    assert changes > 20
    machine.close()


@pytest.mark.parametrize("width", [64, 32])
def test_whatever_has_changed_is_dirty(width: int) -> None:
    """Hypercalls, and domains that are built and buried, while no engine runs: only the hypervisor stores."""
    corpus = CORPUS / ("hypercalls" if width == 64 else "hypercalls32")
    target, looked_at, changes = Hypercalls(width), 0, 0
    with watched():
        for path in sorted(corpus.iterdir()):
            if target.world is None:
                target.run(b"\0")
            world = target.world
            assert world is not None
            ram = world.machine.ram
            before = ram.tables.copy()
            ram.take_dirty()
            target.run(path.read_bytes())
            changed, unnoticed = changed_unnoticed(ram, before)
            assert unnoticed == 0
            looked_at, changes = looked_at + 1, changes + changed
        target.abandon()
    assert looked_at == len(list(corpus.iterdir()))
    assert changes > 4 * looked_at
