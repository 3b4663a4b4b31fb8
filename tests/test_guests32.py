# SPDX-License-Identifier: GPL-2.0-only
"""Our own 32-bit kernels, each proving what it teaches."""

import pytest

from pyhv.abi.numbers import Shutdown
from pyhv.guests.build import BUILTIN_32
from pyhv.machine import Outcome

READY = False
"""Whether 32-bit guests run; True switches this file on."""

pytestmark = pytest.mark.skipif(not READY, reason="32-bit guests do not run yet")


@pytest.mark.parametrize("guest", sorted(BUILTIN_32))
def test_each_succeeds(bench, guest: str) -> None:
    machine = bench()
    domain = machine.add(guest)
    assert machine.run() is Outcome.ENDED
    text = machine.consoles[0].text
    assert "SUCCESS" in text.split(), text
    assert "FAILURE" not in text
    assert domain.shutdown_reason == Shutdown.POWEROFF
