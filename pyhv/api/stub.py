# SPDX-License-Identifier: GPL-2.0-only
"""A machine that gdb is served for: `machine.gdb()`.

    with machine.gdb() as stub:
        print(stub.command)
        stub.serve()            # until gdb has detached, or every guest has ended

Who makes the machine's loop himself asks the stub between two turns, as `pyhv boot --gdb` does.
"""

from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from pyhv.api.guest import Guest
from pyhv.debugger import Debugger
from pyhv.gdb.server import GdbServer
from pyhv.gdb.session import Backwards
from pyhv.images.source import symbol_file
from pyhv.machine import Machine
from pyhv.until import AllEnded, Outcome, Until

if TYPE_CHECKING:
    from pyhv.api.history import History

_LOOK_SECONDS: Final = 0.2
"""Host time after which whoever waits for gdb asks whether the run is over for another reason."""


class GdbHost(Protocol):
    """What the stub needs of its machine."""

    hypervisor: Machine
    history: "History | None"

    def step(self, limit: int | None = None) -> bool:
        """Let one vCPU run."""


class GdbStub:
    """gdb's remote stub for the guests of one machine; a context manager, or `close` it."""

    def __init__(self, host: GdbHost, guest: Guest, address: str) -> None:
        self._host, self._hypervisor, self._guest = host, host.hypervisor, guest
        self._server = GdbServer(host.hypervisor, guest.domid, address, self._backwards, self._keep_pace)

    def _backwards(self, debugger: Debugger) -> Backwards | None:
        """Who takes the machine back, if it remembers its run."""
        if self._host.history is None:
            return None
        from pyhv.api.backwards import HistoryWalker

        return HistoryWalker(self._hypervisor, debugger, self._host.history)

    def _keep_pace(self, on: bool) -> None:
        """Time stands still while the guests do, and while what was is gone through again."""
        history = self._host.history
        self._hypervisor.keep_pace(on and (history is None or history.future is None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Serve no more. The guests are let go."""
        self._server.close()

    @property
    def address(self) -> str:
        """What gdb's `target remote` takes."""
        return self._server.address

    @property
    def command(self) -> str:
        """The command line that starts gdb, with the guest's symbols if its image has any."""
        return self._server.command(symbol_file(self._guest.origin))

    @property
    def connected(self) -> bool:
        """Whether a client is there."""
        return self._server.connected

    @property
    def detached(self) -> bool:
        """Whether a client has been there, and has let the guests go."""
        return self._server.detached

    def serve(self, until: Until | None = None) -> Outcome:
        """Let gdb decide who runs, until it has detached, or all guests have ended, or `until` says so."""
        policy, hypervisor = AllEnded() if until is None else until | AllEnded(), self._hypervisor
        policy.begin(hypervisor)
        try:
            while True:
                hypervisor.settle()
                waits = self._server.waits
                outcome = policy.outcome(hypervisor)
                if outcome is not None and not (waits and outcome is Outcome.ENDED):
                    return outcome
                if self._server.detached:
                    return Outcome.STOPPED
                self._server.pump(_LOOK_SECONDS if waits else 0)
                if not self._server.waits:
                    self._run(policy.limit())
        finally:
            policy.end(hypervisor)

    def _run(self, limit: int | None) -> None:
        hypervisor = self._hypervisor
        if self._host.step(limit):
            return
        due = min((when for when in (hypervisor.next_deadline(), limit) if when is not None), default=None)
        if due is None:
            self._server.pump(_LOOK_SECONDS)  # nothing will ever happen again, unless gdb does something
        elif hypervisor.clock.deterministic:
            hypervisor.advance_to(due)
        else:
            self._server.pump(max(due - hypervisor.now(), 0) / 1e9)

    # -- for whoever makes the loop ----------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether nobody may run now."""
        return self._server.waits

    def fileno(self) -> int:
        """Readable when there is something to `pump`."""
        return self._server.fileno()

    def pump(self) -> bool:
        """Serve what has come."""
        return self._server.pump()
