# SPDX-License-Identifier: GPL-2.0-only
"""One gdb's session: what it asks for, packet by packet, and what it is told when guests stop (GDB manual,
E.2, E.3).

    packet ──► its first letter, or its name ──► a method ──► the reply; None: when the guests have stopped

What gdb asks for that cannot be is an error reply. What is no packet of the protocol gets the empty reply,
which is how a stub says that it does not know something. Neither touches a guest. Bytes and sockets are
`server.py`'s.
"""

import re
from collections.abc import Callable
from typing import Final, Protocol

from pyhv.abi.numbers import Shutdown
from pyhv.debugger import Debugger, Reason, Stop, VcpuId
from pyhv.errors import ReplayError
from pyhv.gdb import packets
from pyhv.gdb.guests import Guests, RequestRefused
from pyhv.gdb.monitor import monitor
from pyhv.gdb.packets import ProtocolError
from pyhv.gdb.points import Points
from pyhv.gdb.target import Target, TargetRegister
from pyhv.gdb.threads import ANY, Plan, ThreadName, parse_actions, parse_thread, plan, thread_name
from pyhv.machine import Machine

SIGINT, SIGTRAP, SIGSEGV = 2, 5, 11
_MOST_READ: Final = packets.MOST_BYTES // 2 - 16
_FEATURES: Final = (
    f"PacketSize={packets.MOST_BYTES:x}",
    "QStartNoAckMode+",
    "qXfer:features:read+",
    "qXfer:threads:read+",
    "multiprocess+",
    "vContSupported+",
    "swbreak+",
    "hwbreak+",
)
_NOT_POWERED_OFF: Final = 1
"""The exit status of a guest that has ended otherwise, and has not crashed."""
Reply = bytes | None


class Backwards(Protocol):
    """Who can take the machine back. Each returns where it is then; None: where its memory begins."""

    def step_back(self, vcpu: VcpuId) -> Stop | None:
        """By an instruction of a vCPU. PyhvError."""

    def run_back(self) -> Stop | None:
        """To the stop before. PyhvError."""


class GdbSession:
    """A client of the stub. It is attached to the guest `attached`, and all stand still when it comes."""

    def __init__(
        self, machine: Machine, debugger: Debugger, attached: int | None, backwards: Backwards | None
    ) -> None:
        self._machine, self._debugger, self._backwards = machine, debugger, backwards
        self._guests = Guests(machine)
        self._points = Points(debugger)
        self.attached: set[int] = set()
        """The guests, by domid, that are debugged."""
        self.stopped = True
        """The guests stand still, and the client knows it."""
        self.over = False
        """The client has said that it is done."""
        self.without_acks = False
        self.multiprocess = False
        self._tells_break = {"swbreak": False, "hwbreak": False}
        self._chosen: dict[str, ThreadName] = {}
        """The thread that packets are about, for `g` registers and memory, and for `c` running on."""
        self._last: VcpuId | None = None
        """The thread that has stopped last."""
        self._ended: bytes | None = None
        """How the last guest has ended, if none is left."""
        if attached is not None:
            self._attach(attached)
        self._commands: dict[str, Callable[[str], Reply]] = {
            "?": self._why_stopped, "g": self._read_registers, "p": self._read_register,
            "m": self._read_memory, "H": self._choose, "T": self._is_alive, "c": self._continue,
            "s": self._step, "D": self._detach,
            "k": self._kill, "qSupported": self._supported, "QStartNoAckMode": self._no_acks,
            "qXfer": self._transfer, "qC": self._current, "qAttached": lambda _: b"1",
            "qfThreadInfo": self._threads, "qsThreadInfo": lambda _: b"l", "qThreadExtraInfo": self._describe,
            "qSymbol": lambda _: b"OK", "vCont?": lambda _: b"vCont;c;C;s;S;t;r", "vCont": self._vcont,
            "vKill": self._kill, "vAttach": self._attach_to, "Z": self._insert, "z": self._remove,
            "G": self._write_registers, "P": self._write_register, "M": self._write_memory,
            "!": lambda _: b"OK", "qRcmd": self._monitor, "b": self._go_back,
        }  # fmt: skip

    # -- packets -----------------------------------------------------------------------------------------

    def handle(self, data: bytes) -> Reply:
        """The reply to a packet; None: it comes when the guests have stopped."""
        if data[:1] == b"X":
            return self._guarded(lambda: self._write_binary(data[1:]))
        try:
            text = data.decode("ascii")
        except UnicodeDecodeError:
            return b""
        name, rest = _split(text)
        command = self._commands.get(name)
        return b"" if command is None else self._guarded(lambda: command(rest))

    @staticmethod
    def _guarded(act: Callable[[], Reply]) -> Reply:
        try:
            return act()
        except (RequestRefused, ProtocolError) as refusal:
            return b"E." + str(refusal).encode("ascii", "replace")

    def _supported(self, text: str) -> bytes:
        wanted = text.split(";")
        self.multiprocess = "multiprocess+" in wanted
        self._tells_break = {name: f"{name}+" in wanted for name in self._tells_break}
        going_back = ("ReverseStep+", "ReverseContinue+") if self._backwards is not None else ()
        return ";".join((*_FEATURES, *going_back)).encode()

    def _no_acks(self, _text: str) -> bytes:
        self.without_acks = True
        return b"OK"

    def _monitor(self, text: str) -> bytes:
        answer = monitor(self._machine, self._guests, _hex(text.removeprefix(",")).decode("utf-8", "replace"))
        return answer.encode().hex().encode()

    # -- threads -----------------------------------------------------------------------------------------

    @property
    def _process(self) -> int:
        """The guest that is meant where none is named."""
        chosen = self._chosen.get("g")
        if chosen is not None and chosen.process in self.attached:
            return chosen.process
        if self._last is not None and self._last[0] in self.attached:
            return self._last[0]
        return min(self.attached, default=0)

    def _threads_of_all(self) -> list[VcpuId]:
        return [vcpu for domid in sorted(self.attached) for vcpu in self._guests.threads(domid)]

    def _vcpu(self, purpose: str = "g") -> VcpuId:
        """The vCPU that packets are about. RequestRefused: there is none."""
        chosen, threads = self._chosen.get(purpose), self._threads_of_all()
        if self._last in threads and (chosen is None or chosen.matches(self._last)):
            return self._last
        found = next((vcpu for vcpu in threads if chosen is None or chosen.matches(vcpu)), None)
        if found is None:
            raise RequestRefused("there is no such thread")
        return found

    def _name(self, vcpu: VcpuId) -> str:
        return thread_name(vcpu, multiprocess=self.multiprocess)

    def _choose(self, text: str) -> bytes:
        if text[:1] not in ("g", "c"):
            raise ProtocolError("H is about g or c")
        thread = parse_thread(text[1:], self._process)
        if thread.thread > ANY and not any(thread.matches(vcpu) for vcpu in self._threads_of_all()):
            raise RequestRefused("there is no such thread")
        self._chosen[text[0]] = thread
        return b"OK"

    def _is_alive(self, text: str) -> bytes:
        thread = parse_thread(text, self._process)
        if not any(thread.matches(vcpu) for vcpu in self._threads_of_all()):
            raise RequestRefused("that thread is gone")
        return b"OK"

    def _current(self, _text: str) -> bytes:
        return f"QC{self._name(self._vcpu())}".encode()

    def _threads(self, _text: str) -> bytes:
        names = [self._name(vcpu) for vcpu in self._threads_of_all()]
        return b"m" + ",".join(names).encode() if names else b"l"

    def _describe(self, text: str) -> bytes:
        thread = parse_thread(text.removeprefix(","), self._process)
        vcpu = next((one for one in self._threads_of_all() if thread.matches(one)), None)
        if vcpu is None:
            raise RequestRefused("there is no such thread")
        return self._guests.describe(vcpu).encode().hex().encode()

    # -- what the processor is ---------------------------------------------------------------------------

    def _transfer(self, text: str) -> bytes:
        found = re.fullmatch(r":(features|threads):read:([a-z.]*):([0-9a-f]{1,8}),([0-9a-f]{1,8})", text)
        if found is None:
            return b""
        if found[1] == "features":
            if found[2] != "target.xml":
                return b"E00"
            document = self._guests.target(self._process).xml
        else:
            document = self._thread_list()
        start, length = int(found[3], 16), min(int(found[4], 16), _MOST_READ)
        piece = document[start : start + length]
        return (b"m" if start + length < len(document) else b"l") + piece

    def _thread_list(self) -> bytes:
        lines = ["<?xml version='1.0'?>", "<threads>"]
        for vcpu in self._threads_of_all():
            name = self._guests.vcpu(vcpu).name
            lines.append(f'<thread id="{self._name(vcpu)}" core="0" name="{name}">')
            lines.append(f"{_xml(self._guests.describe(vcpu))}</thread>")
        return "\n".join([*lines, "</threads>", ""]).encode()

    # -- registers and memory ----------------------------------------------------------------------------

    def _read_registers(self, _text: str) -> bytes:
        vcpu = self._vcpu()
        registers = self._guests.registers(vcpu)
        return b"".join(
            one.read(registers).to_bytes(one.bits // 8, "little").hex().encode()
            for one in self._guests.target(vcpu[0]).registers
        )

    def _write_registers(self, text: str) -> bytes:
        vcpu, data = self._vcpu(), _hex(text)
        target, wanted = self._guests.target(vcpu[0]), {}
        if len(data) != sum(one.bits // 8 for one in target.registers):
            raise ProtocolError("G has not all registers")
        for one in target.registers:
            size = one.bits // 8
            wanted[one], data = int.from_bytes(data[:size], "little"), data[size:]
        self._guests.set_registers(vcpu, wanted)
        return b"OK"

    def _read_register(self, text: str) -> bytes:
        vcpu = self._vcpu()
        register = _register(self._guests.target(vcpu[0]), text)
        value = register.read(self._guests.registers(vcpu))
        return value.to_bytes(register.bits // 8, "little").hex().encode()

    def _write_register(self, text: str) -> bytes:
        number, _, value = text.partition("=")
        vcpu, data = self._vcpu(), _hex(value)
        register = _register(self._guests.target(vcpu[0]), number)
        if len(data) != register.bits // 8:
            raise ProtocolError(f"{register.name} has {register.bits} bits")
        self._guests.set_registers(vcpu, {register: int.from_bytes(data, "little")})
        return b"OK"

    def _read_memory(self, text: str) -> bytes:
        address, length = _numbers(text)
        return self._guests.read(self._vcpu(), address, min(length, _MOST_READ)).hex().encode()

    def _write_memory(self, text: str) -> bytes:
        where, _, value = text.partition(":")
        address, length = _numbers(where)
        data = _hex(value)
        if len(data) != length:
            raise ProtocolError("M has another length than its data")
        self._guests.write(self._vcpu(), address, data)
        return b"OK"

    def _write_binary(self, data: bytes) -> bytes:
        where, _, value = data.partition(b":")
        address, length = _numbers(where.decode("ascii", "replace"))
        if len(value) != length:
            raise ProtocolError("X has another length than its data")
        self._guests.write(self._vcpu(), address, value)
        return b"OK"

    # -- breakpoints -------------------------------------------------------------------------------------

    def _insert(self, text: str) -> bytes:
        kind, address, size = _point(text)
        self._points.insert(self._process, kind, address, size)
        return b"OK"

    def _remove(self, text: str) -> bytes:
        kind, address, size = _point(text)
        self._points.remove(self._process, kind, address, size)
        return b"OK"

    # -- running -----------------------------------------------------------------------------------------

    def _vcont(self, text: str) -> Reply:
        actions = parse_actions(text.removeprefix(";"), self._process)
        turn = self._machine.pcpu.turn
        current = None if turn is None else turn.vcpu.id
        wanted = plan(actions, self._threads_of_all(), current)
        if wanted is None:
            return self._stop_reply(SIGTRAP, "")
        return self._go(wanted)

    def _continue(self, text: str) -> Reply:
        if text:
            raise RequestRefused("set $pc instead of naming an address")
        return self._go(Plan({}, set()))

    def _step(self, text: str) -> Reply:
        if text:
            raise RequestRefused("set $pc instead of naming an address")
        return self._go(Plan({self._vcpu("c"): range(0)}, set()))

    def _go(self, wanted: Plan) -> Reply:
        if not self._threads_of_all():
            raise RequestRefused("there is no guest to run")
        self._debugger.go(wanted.stepping, wanted.held)
        self.stopped = False
        return None

    def _go_back(self, text: str) -> Reply:
        backwards = self._backwards
        if backwards is None or text not in ("s", "c"):
            return b""
        try:
            stop = backwards.step_back(self._vcpu("c")) if text == "s" else backwards.run_back()
        except ReplayError as refusal:
            raise RequestRefused(str(refusal)) from refusal
        return self._stop_reply(SIGTRAP, "replaylog:begin;") if stop is None else self._tell(stop)

    def interrupt(self) -> Reply:
        """The client wants the guests to stop."""
        if self.stopped:
            return None
        turn = self._machine.pcpu.turn
        if turn is not None and turn.vcpu.domid in self.attached:
            self._last = turn.vcpu.id
        self.stopped = True
        return self._stop_reply(SIGINT, "")

    def look(self) -> Reply:
        """Between two turns: what the client is to be told, if the guests have stopped."""
        stop = self._debugger.stop
        if self.stopped or stop is None:
            return None
        self.stopped = True
        if stop.reason is Reason.END:
            return self._tell_end(stop)
        return self._tell(stop)

    def _tell(self, stop: Stop) -> bytes:
        """The stop reply for a vCPU that has come to something."""
        self._last = stop.vcpu
        if stop.reason is Reason.CRASH:
            return self._stop_reply(SIGSEGV, "")
        if stop.reason is Reason.DATA:
            assert stop.data is not None
            return self._stop_reply(SIGTRAP, self._points.tell_data(stop.vcpu[0], stop.data))
        reason = ""
        if stop.reason is Reason.BREAKPOINT:
            kind = self._points.kind_at(stop.vcpu[0], self._debugger.linear_rip(stop.vcpu))
            reason = f"{kind}:;" if self._tells_break.get(kind) else ""
        return self._stop_reply(SIGTRAP, reason)

    def _stop_reply(self, signal: int, reason: str) -> bytes:
        self._chosen.pop("g", None)  # now packets are about the one that has stopped
        vcpu = self._last = self._vcpu()
        return f"T{signal:02x}{reason}thread:{self._name(vcpu)};core:0;".encode()

    def _why_stopped(self, _text: str) -> bytes:
        if self._ended is not None:
            return self._ended
        self.stopped = True
        return self._stop_reply(SIGTRAP, "")

    def _tell_end(self, stop: Stop) -> bytes:
        domid = stop.vcpu[0]
        ended = stop.ended
        letter, number = "W", 0
        if ended is None or ended.reason == Shutdown.CRASH:
            letter, number = "X", SIGSEGV
        elif ended.halted or ended.reason != Shutdown.POWEROFF:
            number = _NOT_POWERED_OFF
        self._forget(domid)
        process = f";process:{domid:x}" if self.multiprocess else ""
        told = f"{letter}{number:02x}{process}".encode()
        if not self.attached:
            self._ended = told
        return told

    # -- coming and going --------------------------------------------------------------------------------

    def _attach(self, domid: int) -> None:
        self._guests.name(domid)
        self.attached.add(domid)
        self._debugger.debugged.add(domid)

    def _attach_to(self, text: str) -> bytes:
        found = re.fullmatch(r";([0-9a-f]{1,8})", text)
        if found is None:
            raise ProtocolError("vAttach names no process")
        domid = int(found[1], 16)
        self._attach(domid)
        self._last = next(iter(self._guests.threads(domid)), None)
        return self._stop_reply(SIGTRAP, "")

    def _forget(self, domid: int) -> None:
        self.attached.discard(domid)
        self._debugger.debugged.discard(domid)
        self._points.forget(domid)
        self._chosen = {purpose: name for purpose, name in self._chosen.items() if name.process != domid}

    def _detach(self, text: str) -> bytes:
        found = re.fullmatch(r"(?:;([0-9a-f]{1,8}))?", text)
        if found is None:
            raise ProtocolError("D names no process")
        for domid in [int(found[1], 16)] if found[1] else list(self.attached):
            self._forget(domid)
        self.over = not self.attached
        return b"OK"

    def _kill(self, text: str) -> bytes:
        found = re.fullmatch(r"(?:;([0-9a-f]{1,8}))?", text)
        for domid in [int(found[1], 16)] if found is not None and found[1] else list(self.attached):
            domain = self._machine.residents.any_domain(domid)
            self._forget(domid)
            if domain is not None and domain.alive:
                self._machine.destroy(domain)
        self.over = not self.attached
        return b"OK"

    def leave(self) -> None:
        """The client has gone: nothing of it stays. Whoever ran runs on."""
        for domid in list(self.attached):
            self._forget(domid)


def _split(text: str) -> tuple[str, str]:
    """A packet's name, and the rest of it."""
    if text[:1] in ("q", "Q", "v"):
        found = re.match(r"[A-Za-z?]+", text)
        assert found is not None
        return found[0], text[found.end() :].removeprefix(":") if found[0] == "qSupported" else text[
            found.end() :
        ]
    return text[:1], text[1:]


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ProtocolError("these are no bytes") from None


def _numbers(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,8})", text)
    if found is None:
        raise ProtocolError(f"{text!r} is no address and length")
    return int(found[1], 16), int(found[2], 16)


def _point(text: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"([0-4]),([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,8})", text)
    if found is None:
        raise ProtocolError("that is no breakpoint, or one with conditions")
    return int(found[1]), int(found[2], 16), int(found[3], 16)


def _register(target: Target, number: str) -> TargetRegister:
    if re.fullmatch(r"[0-9a-fA-F]{1,4}", number) is None or int(number, 16) >= len(target.registers):
        raise RequestRefused(f"there is no register {number!r}")
    return target.registers[int(number, 16)]


def _xml(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
