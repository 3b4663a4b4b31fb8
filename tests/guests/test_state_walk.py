# SPDX-License-Identifier: GPL-2.0-only
"""No attribute of a running machine is forgotten: it is state, or rebuilt, or a cache, and says why."""

import pytest

from pyhv.cpu.engine import Engine
from pyhv.cpu.ram import Ram
from pyhv.cpu.tuning.block import Block
from pyhv.cpu.tuning.gate import Tuning
from pyhv.cpu.vmcb import Vmcb
from pyhv.domain.config import DomainConfig
from pyhv.guests.build import build_builtin
from pyhv.hypercalls.signature import Form
from pyhv.loader.elf import load_image
from pyhv.testing.guest_machine import SECOND, Sink, machine
from pyhv.testing.saving import attributes, unexplained_from
from pyhv.until import Exits
from pyhv.xenstore.peers import introduce_peers

PAGES = 1024
NAMES = ("ping", "pong", "fifo", "debug", "smp32", "grants")
BEYOND = (Engine, Vmcb, Ram, Tuning, Block, Form, Sink)
"""What an engine holds of a guest is said as registers by `Context`, and by its debug unit; memory is an
image; tuning is the library's, the table of hypercalls the program's, a sink the test's."""


@pytest.mark.promise("S-6")
@pytest.mark.parametrize("scheduler", ["credit", "rr"])
@pytest.mark.parametrize("exits", [0, 40, 300])
def test_everything_that_can_be_reached_is_explained(exits: int, scheduler: str) -> None:
    with machine(pages=len(NAMES) * PAGES, scheduler=scheduler) as made:
        for name in NAMES:
            image = load_image(build_builtin(name), name)
            made.create(image, DomainConfig(name, PAGES, vcpus=2), console=Sink())
        introduce_peers(made.store, made.residents.domids())
        if exits:
            made.run(Exits(exits), timeout_ns=SECOND)
        units = [resident.domain.engine.debug_unit for resident in made.residents]
        found = unexplained_from(made, *units, beyond=BEYOND)
        assert found == []


@pytest.mark.promise("S-6")
def test_the_walk_sees_what_nobody_explains() -> None:
    with machine() as made:
        made.forgotten = 1  # type: ignore[attr-defined]
        assert unexplained_from(made, beyond=BEYOND) == ["Machine.forgotten"]
        assert 1 in list(attributes(made))
