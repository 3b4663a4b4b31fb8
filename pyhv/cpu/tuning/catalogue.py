# SPDX-License-Identifier: GPL-2.0-only
"""All changes to the emulator, in the order in which their stubs stand where they share a slot."""

from typing import Final

from pyhv.cpu.tuning.counter import COUNTER
from pyhv.cpu.tuning.form import Patch
from pyhv.cpu.tuning.refusals import REFUSALS
from pyhv.cpu.tuning.sse import SSE
from pyhv.cpu.tuning.stops import STOPS
from pyhv.cpu.tuning.stores import STORES
from pyhv.cpu.tuning.syscalls import SYSCALLS
from pyhv.cpu.tuning.walks import WALKS
from pyhv.cpu.tuning.watching import WATCHING
from pyhv.cpu.tuning.x87 import X87

PATCHES: Final[tuple[Patch, ...]] = (WALKS, STORES, STOPS, COUNTER, REFUSALS, SSE, X87, WATCHING, SYSCALLS)
