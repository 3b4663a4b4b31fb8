# SPDX-License-Identifier: GPL-2.0-only
"""What others want done to a domain: at once while it rests, at its next exit while it runs elsewhere.

A domain's engine, its pages shared with the hypervisor and its vCPUs' place on the processor are for one host
thread at a time: the one whose `Pcpu` runs the domain. Whoever else wants something of them - translated code
dropped, an event set pending, the TLB flushed, the turn ended - hands it in here:

    the domain rests              done now; nobody can begin to run it meanwhile
    it runs in this very thread   done now: we are inside one of its exits
    it runs in another thread     posted, and the engine asked to come back; done at its next exit, at the
                                  latest before its next turn

With one thread nothing is ever posted. Who posts does not learn when it is done, and never waits for it.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from threading import get_ident
from typing import ClassVar, ParamSpec

P = ParamSpec("P")


class Mailbox:
    """One domain's. `posted` is what waits; whoever runs the domain looks at it at each exit."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "posted": "empty while nobody runs the domain",
        **dict.fromkeys(("_holder", "_stop", "_free"), "means something only while somebody runs the domain"),
    }

    def __init__(self) -> None:
        self.posted: deque[Callable[[], object]] = deque()
        self._holder = 0
        """The host thread that runs the domain, or does something to it; 0: it rests."""
        self._stop: Callable[[], None] = _nobody_runs
        self._free = threading.Condition(threading.Lock())

    def do(self, act: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have `act` done by whoever may, in the order in which it was asked for."""
        if self._holder == get_ident():
            act(*args, **kwargs)
            return
        with self._free:
            if self._holder:
                self.posted.append(partial(act, *args, **kwargs))
                self._stop()
                return
            self._holder = get_ident()
        try:
            act(*args, **kwargs)
        finally:
            self.leave()

    def enter(self, stop: Callable[[], None]) -> None:
        """This thread is going to run the domain; `stop` may be called by others, to have it come back.

        Waits while another thread is here, which for those who only do something is a short while.
        """
        with self._free:
            while self._holder:
                self._free.wait()
            self._holder, self._stop = get_ident(), stop

    def drain(self) -> None:
        """Do what was posted; called at each exit by who is here."""
        while self.posted:
            self.posted.popleft()()

    def leave(self) -> None:
        """This thread is done with the domain, and with all that was posted."""
        while True:
            self.drain()
            with self._free:
                if not self.posted:
                    self._holder, self._stop = 0, _nobody_runs
                    self._free.notify()
                    return


def _nobody_runs() -> None:
    """Who does something to a domain that rests comes back by himself."""
