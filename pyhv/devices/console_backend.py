# SPDX-License-Identifier: GPL-2.0-only
"""The console as a device: its ring (`console.py`), the log of what was printed, and what is typed."""

from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, Self

from pyhv.devices.backend import Backend, Link
from pyhv.devices.console import ConsoleRing
from pyhv.devices.console_log import LIMIT, ConsoleLog, ConsoleSink
from pyhv.events.channels import DeviceName
from pyhv.mmu.physical import FramePage
from pyhv.state import Plain, entries, restore, typed


class ConsoleBackend(Backend):
    """A guest's console. Output goes to the log at once, and on to the sink when the turn has ended."""

    kind: ClassVar[str] = "console"
    NOT_STATE: ClassVar[Mapping[str, str]] = {**Backend.NOT_STATE, "_stalls_until": "a test's affair"}

    def __init__(self, link: Link, domid: int, sink: ConsoleSink) -> None:
        super().__init__(link, domid)
        self.log = ConsoleLog(sink)
        self.ring: ConsoleRing
        self.typed = 0
        """Bytes of input that the guest has been given since the beginning."""
        self._stalls_until: int | None = None

    @classmethod
    def made_again(
        cls, link: Link, name: DeviceName, sink_for: Callable[[int], ConsoleSink], _saved: Plain
    ) -> Self:
        """`Backend.made_again`."""
        return cls(link, name.domid, sink_for(name.domid))

    def use(self, page: FramePage) -> None:
        """`Backend.use`."""
        self.ring = ConsoleRing(page, self.notify)

    def event(self) -> None:
        """Take what the guest has printed, as far as the log has room."""
        self.log.add(self.ring.drain(self.log.room))

    def turn_ended(self, polled: Collection[int] | None) -> None:
        """What was printed goes on, and the guest hears that it has been read.

        Not if it polls some ports and the console's is not among them: it does not wait for us, and would be
        woken for nothing.
        """
        self.go_on()
        if self.is_polled(polled):
            self.ring.settle()

    def go_on(self) -> bool:
        """Give the sink what it takes; if the log was full, take what waits in the ring."""
        if not self.log:
            return False
        full = not self.log.room
        self.log.drain()
        if full and self.log.room:
            self.event()
            self.log.drain()
            self.ring.settle()
        return bool(self.log)

    def last_words(self) -> None:
        """`Backend.last_words`."""
        self.event()

    def stall(self, until: int | None) -> None:
        """Take nothing more of what the guest prints until `until` (ns of machine time); None: `resume`."""
        self.log.limit, self._stalls_until = 0, until

    def resume(self) -> None:
        """Go on after `stall` with what waits in the ring."""
        self.log.limit, self._stalls_until = LIMIT, None
        self.event()
        self.log.drain()
        self.ring.settle()

    def next_deadline(self) -> int | None:
        """`Backend.next_deadline`."""
        return self._stalls_until

    def expire(self, _now: int) -> None:
        """`Backend.expire`."""
        self.resume()

    def input(self, data: bytes) -> int:
        """What is typed; returns how many bytes the guest's ring had room for."""
        accepted = self.ring.feed(data)
        self.typed += accepted
        return accepted

    def state(self) -> dict[str, Plain]:
        """The ring's debts, and the log."""
        return {"ring": self.ring.state(), "log": self.log.state(), "typed": self.typed}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
        found = entries(dict(saved), "", {"ring": None, "log": None, "typed": None})
        restore(self.ring, found["ring"], "ring")
        restore(self.log, found["log"], "log")
        self.typed = typed(int, found["typed"], "typed")
