# SPDX-License-Identifier: GPL-2.0-only
"""What domains know of each other must agree: what is made to differ is found."""

from typing import Any

import pytest

from pyhv.abi.grants import MapFlag
from pyhv.address import Mfn
from pyhv.errors import StateError
from pyhv.grants.maptrack import Mapping
from pyhv.snapshot import whole
from pyhv.state import restore, state
from pyhv.testing.guest_machine import PAGES, Paused, Sink, machine


@pytest.mark.promise("I-17")
def test_accounts_that_do_not_agree_are_found() -> None:
    with machine(pages=2 * PAGES) as made:
        lender, borrower = Paused(made), Paused(made)
        assert made.audit() == []
        borrower.domain.maptrack.add(Mapping(lender.domain.domid, 8, MapFlag.DEVICE, Mfn(0)))
        assert [line for line in made.audit() if "grant 8" in line] == [
            "d2 has the DEVICE half of grant 8 of d1 1 times writable, d1 counts 0"
        ]


@pytest.mark.promise("I-17")
def test_ports_that_do_not_agree_are_found() -> None:
    with machine(pages=2 * PAGES) as made:
        guest = Paused(made)
        said: Any = state(guest.domain.events)
        said["ports"][0][1]["peer_port"] += 1
        restore(guest.domain.events, said)
        assert "port 1 of d1 is connected to a port that is not connected to it" in made.audit()


@pytest.mark.promise("I-17")
def test_what_the_board_keeps_for_itself_is_looked_at() -> None:
    with machine() as made:
        board = made.board
        assert made.audit() == []
        made.ram.store_u64(board.zero_frame << 12 | 8, 1)
        board.frames.owner[board.xen_gdt[32]] = 1
        told = [line for line in made.audit() if "as the board has made it" in line]
        assert len(told) == 2


@pytest.mark.parametrize("key", [[1, 1, 1], [0, 2, 0], [2, 1, 2]])
def test_a_timer_of_something_that_is_not_there_is_refused(key: list[int]) -> None:
    with machine() as made:
        Paused(made)
        said: Any = whole.say(made)
        image = made.ram.freeze()
        whole.put_back(made, said, image, lambda *_: Sink(), trusted=False)
        said["timers"]["armed"].append([key, 5])
        with pytest.raises(StateError, match="timers has one of the kind"):
            whole.put_back(made, said, image, lambda *_: Sink(), trusted=False)
