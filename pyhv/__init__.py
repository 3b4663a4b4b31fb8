# SPDX-License-Identifier: GPL-2.0-only
"""pyhv: a paravirtualizing hypervisor in Python that speaks the genuine Xen PV ABI.

import pyhv

with pyhv.Machine(memory="1G", virtual_time=True, seed=1) as machine:
    guest = machine.boot("debian", memory="128M")
    guest.expect(r"/ # ")
    print(guest.run("uname -r").output)
    guest.shutdown()
    assert guest.wait().reason == "poweroff"
"""

from typing import TYPE_CHECKING, Any, Final

from pyhv import lane
from pyhv.version import VERSION

__version__ = VERSION
__all__ = [
    "Diverged", "Guest", "GuestFailed", "Machine", "NotMapped", "PyhvError", "Replay", "ReplayError",
    "Snapshot", "__version__", "load",
]  # fmt: skip

if TYPE_CHECKING:
    from pyhv.api.guest import Guest, GuestFailed
    from pyhv.api.machine import Machine, load
    from pyhv.api.memory import NotMapped
    from pyhv.api.replay import Replay
    from pyhv.errors import Diverged, PyhvError, ReplayError
    from pyhv.snapshot.snapshot import Snapshot

_HOMES: Final = {
    "Diverged": "pyhv.errors",
    "Guest": "pyhv.api.guest",
    "GuestFailed": "pyhv.api.guest",
    "Machine": "pyhv.api.machine",
    "Replay": "pyhv.api.replay",
    "ReplayError": "pyhv.errors",
    "Snapshot": "pyhv.snapshot.snapshot",
    "load": "pyhv.api.machine",
    "NotMapped": "pyhv.api.memory",
    "PyhvError": "pyhv.errors",
}

assert lane.ACTIVE  # decided before any other module is imported


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `pyhv --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
