# SPDX-License-Identifier: GPL-2.0-only
"""Where the exits come in that are most of them: SYSCALL, and exceptions.

For SYSCALL RIP is at the instruction. A tuned engine enters `ExitHooks.syscall` directly, with the
instruction's length (`tuning/syscalls.py`). The emulator itself does not tell it, calls a hook of its kind,
and adds the length to RIP when that returns: `ExitHooks.hooked_syscall`. Each hook is a native function where
this module is compiled, and else a callback of `ctypes`.
"""

import ctypes
from typing import Final, Protocol

from pyhv.abi.x86 import PF_I
from pyhv.address import MASK64
from pyhv.cpu import binding
from pyhv.cpu import vmcb as v
from pyhv.cpu.words import exception_entry, syscall_entry, syscall_hook, words32, words64

_DIRECT: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)
_PAGE_FAULT: Final = 14


class HookedEngine(Protocol):
    """The engine, as its hooks see it."""

    def syscall_length(self) -> int:
        """Length of the instruction at RIP: 2, and its prefixes."""

    def blames_refused(self, translating: int) -> bool:
        """Whether an exception is none, because it came up in `translating` what is refused anyway."""

    def ended_port_fault(self) -> None:
        """A refused port access was draining and is over now: the instruction was never executed."""

    def fail(self, error: BaseException) -> None:
        """Stop, and have `run` raise that."""


class DirectSink:
    """A sink of exits whose methods compiled code calls as functions of C. Others may be any object."""

    __slots__ = ()

    def syscall(self, length: int) -> None:
        """SYSCALL of `length` bytes; RIP still at it. The sink sets RIP to where the guest goes on."""
        raise NotImplementedError

    def exception(self, vector: int) -> None:
        """An exception or software interrupt; RIP is where the guest would go on."""
        raise NotImplementedError


class AnySink(Protocol):
    """What handles these exits, whatever its class."""

    def syscall(self, length: int) -> None:
        """As `DirectSink.syscall`."""

    def exception(self, vector: int) -> None:
        """As `DirectSink.exception`."""


class ExitHooks:
    """The hooks of one engine, over the sink of its exits."""

    def __init__(self, engine: HookedEngine, vmcb: v.Vmcb, sink: AnySink) -> None:
        self._engine = engine
        self._keep = vmcb
        self._q, self._d = words64(vmcb.q), words32(vmcb.d)
        self._sink = sink if isinstance(sink, DirectSink) else None
        self._syscall, self._exception = sink.syscall, sink.exception
        self.draining = False
        """A refused port access is draining: what is left of its block may come here and must do nothing."""

    def syscall(self, length: int) -> None:
        """A SYSCALL of `length` bytes is to be executed: find out what it does, and set RIP."""
        try:
            if self.draining:
                self._engine.ended_port_fault()
            elif self._sink is not None:
                self._sink.syscall(length)
            else:
                self._syscall(length)
        except BaseException as error:
            self._engine.fail(error)

    def hooked_syscall(self, _engine: int = 0, _data: int | None = None) -> None:
        """The same as a hook of the emulator's, whose arguments these are."""
        length = self._engine.syscall_length()
        self.syscall(length)
        q = self._q
        q[v.RIP] = (q[v.RIP] - length) & MASK64  # the emulator adds the length after the hook

    def exception(self, _engine: int, vector: int, _data: int | None = None) -> None:
        """An exception or software interrupt, as a hook of the emulator's."""
        d = self._d
        d[v.OLD_EXCEPTION] = v.MINUS_ONE
        try:
            if self.draining:
                self._engine.ended_port_fault()
                return
            if vector == _PAGE_FAULT and d[v.ERROR_CODE] & PF_I and self._engine.blames_refused(1):
                return
            if self._sink is not None:
                self._sink.exception(vector)
            else:
                self._exception(vector)
        except BaseException as error:
            self._engine.fail(error)


_Hook = tuple[object, ctypes.c_void_p | None]
"""What `uc_hook_add` wants: a function, and the data that it is to be called with."""


def for_syscall(hooks: ExitHooks) -> _Hook:
    """The emulator's hook of SYSCALL."""
    address = syscall_hook(hooks)
    if address:
        return ctypes.c_void_p(address), ctypes.c_void_p(id(hooks))
    return binding.CB_INSN(hooks.hooked_syscall), None


def for_exceptions(hooks: ExitHooks) -> _Hook:
    """The emulator's hook of exceptions."""
    address = exception_entry(hooks)
    if address:
        return ctypes.c_void_p(address), ctypes.c_void_p(id(hooks))
    return binding.CB_INTR(hooks.exception), None


def direct_syscall(hooks: ExitHooks) -> tuple[int, int, object]:
    """For a tuned engine: (address of the function, its data, what to keep as long as it is used)."""
    address = syscall_entry(hooks)
    if address:
        return address, id(hooks), hooks
    function = _DIRECT(lambda _data, length: hooks.syscall(length))
    return ctypes.cast(function, ctypes.c_void_p).value or 0, 0, function
