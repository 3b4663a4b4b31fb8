# SPDX-License-Identifier: GPL-2.0-only
"""`monitor COMMAND`: what gdb's user can ask of the hypervisor itself."""

from typing import Final

from pyhv.gdb.guests import Guests
from pyhv.machine import Machine

_HELP: Final = """\
monitor guests    the guests that have not ended; `attach N` attaches to another one (target extended-remote)
monitor time      the machine's time
"""


def monitor(machine: Machine, guests: Guests, command: str) -> str:
    """The answer to a command, for a person."""
    words = command.split()
    if words == ["guests"]:
        return "".join(
            f"{domid}  {guests.name(domid)}, {len(guests.threads(domid))} vCPUs\n"
            for domid in guests.domids()
        )
    if words == ["time"]:
        return f"{machine.now() / 1e9:.9f} s\n"
    return _HELP
