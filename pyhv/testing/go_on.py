# SPDX-License-Identifier: GPL-2.0-only
"""A process of its own that reads snapshots and goes on: prints, as JSON, what each machine did to its end.

python -m pyhv.testing.go_on EXITS FILE...        EXITS 0: until all guests have ended
"""

import json
import sys

from pyhv.machine import Machine
from pyhv.observe.digest import Digest
from pyhv.snapshot.snapshot import Snapshot
from pyhv.testing.guest_machine import SECOND, Sink
from pyhv.until import AllEnded, Exits

History = list[object]
"""Hash chain over the exits, machine time at the end in ns, and all consoles' output together."""


def finish(machine: Machine, exits: int) -> None:
    """Run on for so many exits; 0: to the end."""
    machine.run(Exits(exits) if exits else AllEnded(), timeout_ns=60 * SECOND)


def go_on(snapshot: Snapshot, exits: int = 0) -> History:
    """What a machine that is made of a snapshot does."""
    sink, digest = Sink(), Digest()
    machine = snapshot.rebuild(lambda _domid: sink)
    try:
        machine.observe(digest)
        finish(machine, exits)
        return [digest.summary(), machine.now(), sink.data.decode("latin-1")]
    finally:
        machine.close()


if __name__ == "__main__":
    print(json.dumps([go_on(Snapshot.load(path), int(sys.argv[1])) for path in sys.argv[2:]]))
