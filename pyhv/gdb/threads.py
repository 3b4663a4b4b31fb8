# SPDX-License-Identifier: GPL-2.0-only
"""How packets name threads, and which thread is to do what (GDB manual, E.1 `thread-id` and E.2 `vCont`).

A process is a guest, by its domid; a thread is a vCPU, by its number and one, since 0 and -1 mean "any" and
"all". With the multiprocess extension a thread is `p1.2`, without it `2`, of the one process that there is.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from pyhv.debugger import VcpuId
from pyhv.gdb.packets import ProtocolError

ALL, ANY = -1, 0
_THREAD: Final = re.compile(r"(?:p(-1|[0-9a-fA-F]{1,8})(?:\.(-1|[0-9a-fA-F]{1,8}))?|(-1|[0-9a-fA-F]{1,8}))\Z")
_ACTION: Final = re.compile(
    r"(c|s|t|r|C[0-9a-fA-F]{2}|S[0-9a-fA-F]{2})([0-9a-fA-F]{1,16},[0-9a-fA-F]{1,16})?\Z"
)


class ThreadName(NamedTuple):
    """A process and a thread of it, `ALL` or `ANY` for either."""

    process: int
    thread: int

    def matches(self, vcpu: VcpuId) -> bool:
        """Whether a vCPU is meant, if "any" means all."""
        return self.process in (ALL, ANY, vcpu[0]) and self.thread in (ALL, ANY, vcpu[1] + 1)


def parse_thread(text: str, process: int) -> ThreadName:
    """A thread as a packet names it; one without its process is of `process`. ProtocolError."""
    found = _THREAD.match(text)
    if found is None:
        raise ProtocolError(f"{text!r} is no thread")
    of, thread, alone = found.groups()
    if alone is not None:
        return ThreadName(process, int(alone, 16))
    return ThreadName(int(of, 16), ALL if thread is None else int(thread, 16))


def thread_name(vcpu: VcpuId, *, multiprocess: bool) -> str:
    """A vCPU as a packet names it."""
    return f"p{vcpu[0]:x}.{vcpu[1] + 1:x}" if multiprocess else f"{vcpu[1] + 1:x}"


class Action(NamedTuple):
    """What a thread is to do: `steps` through these addresses (an empty range: one instruction), or run
    on."""

    who: ThreadName
    steps: range | None
    stops: bool = False


def parse_actions(text: str, process: int) -> list[Action]:
    """The actions of a `vCont` packet, of which the first one that matches a thread is its. ProtocolError."""
    actions = []
    for piece in text.split(";"):
        what, colon, who = piece.partition(":")
        found = _ACTION.match(what)
        if found is None or (found[1] == "r") != (found[2] is not None):
            raise ProtocolError(f"{piece!r} is nothing that a thread could do")
        named = parse_thread(who, process) if colon else ThreadName(ALL, ALL)
        steps = None
        if found[1] == "r":
            steps = range(*(int(number, 16) for number in found[2].split(",")))
        elif found[1][0] in "sS":
            steps = range(0)
        actions.append(Action(named, steps, found[1] == "t"))
    return actions


class Plan(NamedTuple):
    """What a `vCont` packet asks for: who steps, and who must not run."""

    stepping: dict[VcpuId, range]
    held: set[VcpuId]


def plan(actions: Iterable[Action], vcpus: Iterable[VcpuId], current: VcpuId | None) -> Plan | None:
    """What follows for these vCPUs; None: nobody is to run.

    gdb has one thread alone step over a breakpoint that it has taken away. If that is the vCPU whose turn is
    open, nobody else would run before it has done its step, with few exceptions; in these the others may run,
    since to hold them would change the run.
    """
    actions, stepping, held, running = list(actions), dict[VcpuId, range](), set[VcpuId](), False
    for vcpu in vcpus:
        action = next((one for one in actions if one.who.matches(vcpu)), None)
        if action is None or action.stops:
            held.add(vcpu)
        elif action.steps is not None:
            stepping[vcpu] = action.steps
        else:
            running = True
    if not stepping and not running:
        return None
    if not running and set(stepping) == {current}:
        held.clear()
    return Plan(stepping, held)
