# SPDX-License-Identifier: GPL-2.0-only
"""Faults on purpose: what a guest's test has go wrong, when, and how often it did.

    inject.hypercall("mmu_update", errno="ENOMEM", nth=3)         the third one from now on
    inject.hypercall("memory_op", "populate_physmap", errno="ENOMEM")        each one
    inject.grant_map(status="NO_SPACE", nth=(1, 2))               single structures of a list
    inject.event(virq="timer", drop=True, nth=5)                  an interrupt is lost
    inject.event(port=3, delay=0.020)                             or comes 20 ms later
    inject.timer(late=0.5, nth=1)
    inject.store("EAGAIN", "write", path="device/*")
    inject.console(seconds=2)                                     nobody reads it

Most take `when`, a function that is asked whether a moment counts; each returns a `Fault`, which tells what
it has done. Moments are counted from where it is asked for, times are the machine's, so that in virtual time
it is the same every time. A fault stands in the place of what it changes - an entry of the guest's table of
hypercalls, a method of its event channels or of its connection to the store - and without one there is
nothing in that place, nor anybody who asks.
"""

import fnmatch
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pyhv.abi.errno import Errno
from pyhv.abi.grants import GrantStatus
from pyhv.abi.numbers import Gnttab, Hypercall, PortState, Virq
from pyhv.abi.structs import GnttabMapGrantRef, MmuextOp
from pyhv.abi.xs_wire import Message
from pyhv.api.guest import Guest
from pyhv.devices.store_backend import StoreBackend
from pyhv.errors import ConfigError, XenError
from pyhv.events.channels import PortStatus
from pyhv.frozen import frozen
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.mmulists import tell_done
from pyhv.hypercalls.registry import COMMANDS
from pyhv.hypercalls.signature import Form
from pyhv.resident import Resident
from pyhv.xenstore.limits import ERROR_NAMES, StoreError
from pyhv.xenstore.wire import Connection, Request

if TYPE_CHECKING:
    from pyhv.testing.under_test import MachineUnderTest

Nth = int | Collection[int] | None
"""Which of the moments that count are struck, from 1; None: all."""
_N = TypeVar("_N", bound=IntEnum)
_I = TypeVar("_I")
Handler = Callable[..., int]
_Around = Callable[[Handler], Handler]
_LISTS: Final = {Hypercall.MMU_UPDATE, Hypercall.MMUEXT_OP}
"""Hypercalls that tell how many of a list are done, at their third argument."""
_CONTINUED: Final = 1 << 31
"""In the count of such a list: it has begun before."""
_LONGEST: Final = 1 << 12
"""So many structures of a list are looked at."""
_LONGEST_DELAY: Final = 1e6
"""Seconds."""


@frozen
class Attempt:
    """A hypercall that is about to be performed, for `when`: its arguments as its handler takes them."""

    name: str
    arguments: tuple[int, ...]


@frozen
class StoreRequest:
    """A request to the store, for `when`."""

    operation: str
    path: str
    """Its first string; empty where it has none."""


@dataclass(slots=True, eq=False)
class Fault:
    """One thing that goes wrong. `end` ends it; so does the end of the test."""

    what: str
    nth: frozenset[int] | None
    when: Callable[[Any], bool] | None
    seen: int = 0
    """How many moments have counted."""
    struck: int = 0
    """How often it has gone wrong."""
    undo: Callable[[], None] = field(default=lambda: None, repr=False)

    def strikes(self, moment: object) -> bool:
        """Whether this moment is one of those."""
        if self.when is not None and not self.when(moment):
            return False
        self.seen += 1
        if self.nth is not None and self.seen not in self.nth:
            return False
        self.struck += 1
        return True

    def end(self) -> None:
        """From now on all is well."""
        undo, self.undo = self.undo, lambda: None
        undo()

    def __str__(self) -> str:
        which = "all" if self.nth is None else ", ".join(f"no. {number}" for number in sorted(self.nth))
        return f"{self.what}: {which} of {self.seen}, {self.struck} of them struck"


class _Place(Generic[_I]):
    """One place where faults can stand; `install` puts them there, in their order, or nothing."""

    def __init__(self, install: Callable[[list[_I]], None]) -> None:
        self._install = install
        self._here: list[_I] = []

    def put(self, fault: Fault, obstacle: _I) -> Fault:
        """Put a fault here until it ends."""
        self._here.append(obstacle)
        self._install(self._here)

        def undo() -> None:
            self._here.remove(obstacle)
            self._install(self._here)

        fault.undo = undo
        return fault


class Injector:
    """Has things go wrong for the guests of one machine: for the first one, or for the one that is named."""

    def __init__(self, machine: "MachineUnderTest") -> None:
        self._machine = machine
        self.faults: list[Fault] = []
        """All that were asked for."""
        self._places: dict[tuple[object, ...], _Place[Any]] = {}

    def end(self) -> None:
        """From now on all is well."""
        for fault in reversed(self.faults):
            fault.end()

    def hypercall(
        self,
        name: str,
        command: str | None = None,
        *,
        errno: str,
        nth: Nth = None,
        when: Callable[[Attempt], bool] | None = None,
        guest: Guest | None = None,
    ) -> Fault:
        """A hypercall, or one of its commands, is refused with an errno; nothing of it is done.

        A list of mmuext_op is refused as a whole if the command is in it. What goes on by itself after it
        gave way is one call for mmu_update and mmuext_op; with others each part counts.
        """
        number = _member(Hypercall, name, "hypercall")
        if number is Hypercall.IRET:
            raise ConfigError("iret has no result, so it cannot be refused.")
        error = _member(Errno, errno, "errno")
        wanted = None if command is None else _command(number, command)
        fault = self._fault(f"{name}{f' {command}' if command else ''} fails with {error.name}", nth, when)

        def around(inner: Handler) -> Handler:
            def handler(call: Call, *values: int) -> int:
                listed = number in _LISTS
                begun = listed and values[1] & _CONTINUED
                named = wanted is None or wanted in _commands(call, number, values)
                if not begun and named and fault.strikes(Attempt(name, values)):
                    if listed:
                        tell_done(call, values[2], 0)
                    raise XenError(error, f"injected: {fault.what}")
                return inner(call, *values)

            return handler

        return self._at_form(guest, number).put(fault, around)

    def grant_map(
        self,
        *,
        status: str = "GENERAL_ERROR",
        nth: Nth = None,
        when: Callable[[GnttabMapGrantRef], bool] | None = None,
        guest: Guest | None = None,
    ) -> Fault:
        """A grant is not mapped: the structure says so in its `status` (GNTST), and the list goes on."""
        answer = _member(GrantStatus, status, "grant status")
        fault = self._fault(f"map_grant_ref answers {answer.name}", nth, when)
        number = Hypercall.GRANT_TABLE_OP

        def around(inner: Handler) -> Handler:
            def handler(call: Call, command: int, argument: int, count: int) -> int:
                if command != Gnttab.MAP_GRANT_REF or count >= _CONTINUED:
                    return inner(call, command, argument, count)
                size = GnttabMapGrantRef.size(call.width)
                for index in range(count):
                    at = argument + size * index
                    request = call.read(GnttabMapGrantRef, at)
                    if fault.strikes(request):
                        request.status = answer
                        call.write(at, request)
                    else:
                        inner(call, command, at, 1)
                    if call.gives_way(index + 1, count):
                        raise Again(command, at + size, count - index - 1)
                return 0

            return handler

        return self._at_form(guest, number).put(fault, around)

    def event(
        self,
        *,
        port: int | None = None,
        virq: str | None = None,
        drop: bool = False,
        delay: float | None = None,
        nth: Nth = None,
        when: Callable[[PortStatus], bool] | None = None,
        guest: Guest | None = None,
    ) -> Fault:
        """Events for a guest - of one port, of one VIRQ, or all - are lost, or arrive `delay` seconds later.

        Whoever sends them notices nothing.
        """
        if drop == (delay is not None) or not 0 < (delay or 1) < _LONGEST_DELAY:
            raise ConfigError("An event is either lost (drop=True) or comes later (delay=seconds).")
        number = None if virq is None else _member(Virq, virq, "VIRQ")
        which = f"of port {port}" if port is not None else f"of VIRQ {virq}" if virq else "of any port"
        fault = self._fault(f"an event {which} {'is lost' if drop else f'comes {delay:g} s late'}", nth, when)
        domain = self._resident(guest).domain
        events, services = domain.events, self._machine.hypervisor.services

        def allow(arriving: int) -> bool:
            status = events.status(domain.domid, arriving)
            is_it = port in (None, arriving)
            if number is not None:
                is_it = is_it and status.state == PortState.VIRQ and status.virq == number
            if not is_it or not fault.strikes(status):
                return True
            if delay is not None:
                services.delay_event(domain, arriving, round(delay * 1e9))
            return False

        def install(here: list[Callable[[int], bool]]) -> None:
            events.interpose((lambda arriving: all(ask(arriving) for ask in here)) if here else None)

        return self._place(("events", events), install).put(fault, allow)

    def timer(self, *, late: float, nth: Nth = None, guest: Guest | None = None) -> Fault:
        """A timer's event comes `late` seconds after it was due: VIRQ timer, one-shot or periodic."""
        return self.event(virq="timer", delay=late, nth=nth, guest=guest)

    def store(
        self,
        error: str,
        operation: str | None = None,
        *,
        path: str = "*",
        nth: Nth = None,
        when: Callable[[StoreRequest], bool] | None = None,
        guest: Guest | None = None,
    ) -> Fault:
        """A guest's requests to the store are refused with an error of its protocol; nothing of them is done.

        `operation` is a message's type, "read", "write", "transaction_end"; `path` is a pattern as of a
        shell, for the first string of the message.
        """
        if error not in ERROR_NAMES:
            known = ", ".join(sorted(ERROR_NAMES))
            raise ConfigError(f"{error!r} is no error of the store's protocol; there are {known}.")
        kind = None if operation is None else _member(Message, operation, "message type")
        fault = self._fault(f"the store answers {error}{f' to {operation}' if operation else ''}", nth, when)
        connection = self._connection(guest)

        def before(request: Request) -> None:
            first = request.payload.split(b"\0", 1)[0].decode("latin-1")
            if kind not in (None, request.kind) or not fnmatch.fnmatchcase(first, path):
                return
            name = Message(request.kind).name.lower() if request.kind in set(Message) else str(request.kind)
            if fault.strikes(StoreRequest(name, first)):
                raise StoreError(error, "injected")

        def install(here: list[Callable[[Request], None]]) -> None:
            def each(request: Request) -> None:
                for look in here:
                    look(request)

            connection.interpose(each if here else None)

        return self._place(("store", connection), install).put(fault, before)

    def console(self, *, seconds: float | None = None, guest: Guest | None = None) -> Fault:
        """Nobody reads what a guest prints: from now on for `seconds`, or until the fault ends."""
        if seconds is not None and not 0 < seconds < _LONGEST_DELAY:
            raise ConfigError("A console stalls for some seconds (seconds=...), or until the fault ends.")
        resident, hypervisor = self._resident(guest), self._machine.hypervisor
        domid, dom0 = resident.domain.domid, hypervisor.dom0
        fault = self._fault("the console stalls" + (f" for {seconds:g} s" if seconds else ""), None, None)
        fault.seen = fault.struck = 1
        dom0.stall_console(domid, None if seconds is None else hypervisor.now() + round(seconds * 1e9))

        def undo() -> None:
            if hypervisor.residents.get(domid) is resident:
                dom0.resume_console(domid)

        fault.undo = undo
        return fault

    # -- where it is done --------------------------------------------------------------------------------

    def _fault(self, what: str, nth: Nth, when: Callable[[Any], bool] | None) -> Fault:
        chosen = None if nth is None else frozenset((nth,) if isinstance(nth, int) else nth)
        if chosen is not None and (not chosen or min(chosen) < 1):
            raise ConfigError(f"nth is {nth!r}; moments are counted from 1.")
        fault = Fault(what, chosen, when)
        self.faults.append(fault)
        return fault

    def _resident(self, guest: Guest | None) -> Resident:
        if guest is None:
            if not self._machine.had:
                raise ConfigError("There is no guest yet for which something could go wrong.")
            guest = self._machine.had[0]
        resident = self._machine.resident(guest)
        if resident is None:
            raise ConfigError(f"{guest.name} has ended, so nothing can go wrong for it.")
        return resident

    def _at_form(self, guest: Guest | None, number: Hypercall) -> "_Place[_Around]":
        forms = self._resident(guest).dispatcher.forms
        original = forms[number]
        assert original is not None, "every hypercall has a handler"

        def install(here: list[_Around]) -> None:
            handler = original.handler
            for around in here:
                handler = around(handler)
            forms[number] = Form(original.width, handler, original.arguments) if here else original

        return self._place(("form", id(forms), number), install)

    def _connection(self, guest: Guest | None) -> Connection:
        domid = self._resident(guest).domain.domid
        devices = self._machine.hypervisor.dom0.devices(domid)
        return next(one.connection for one in devices if isinstance(one, StoreBackend))

    def _place(self, key: tuple[object, ...], install: Callable[[list[_I]], None]) -> "_Place[_I]":
        return self._places.setdefault(key, _Place(install))


def _member(kind: type[_N], name: str, what: str) -> _N:
    """A number of the ABI by its name. ConfigError."""
    found = kind.__members__.get(name.upper())
    if found is None:
        known = ", ".join(member.lower() for member in kind.__members__)
        raise ConfigError(f"{name!r} is no {what}; there are {known}.")
    return found


def _command(number: Hypercall, name: str) -> int:
    commands = COMMANDS.get(number)
    if commands is None:
        raise ConfigError(f"{number.name.lower()} has no commands.")
    return _member(commands.numbers, name, f"command of {number.name.lower()}")


def _commands(call: Call, number: Hypercall, values: Sequence[int]) -> Collection[int]:
    """The commands of a hypercall that is about to be performed: one, or those of its list."""
    if number is not Hypercall.MMUEXT_OP:
        return values[:1]
    size, count = MmuextOp.size(call.width), min(values[1], _LONGEST)
    try:
        return {call.read(MmuextOp, values[0] + size * index).cmd for index in range(count)}
    except XenError:
        return ()  # its handler will say so
