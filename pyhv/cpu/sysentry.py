# SPDX-License-Identifier: GPL-2.0-only
"""Where SYSCALL comes in: the one hook that is called for each system call and each hypercall.

RIP is at the instruction. A tuned engine enters `SyscallHook.enter` directly, with the instruction's length
(`tuning/syscalls.py`). The emulator itself does not tell it, calls a hook of its kind, and adds the length to
RIP when that returns: `SyscallHook.hooked`. Either way the hook is a native function where this module is
compiled, and else a callback of `ctypes`.
"""

import ctypes
from typing import Final, Protocol

from pyhv.address import MASK64
from pyhv.cpu import binding
from pyhv.cpu import vmcb as v
from pyhv.cpu.words import native_entry, native_hook, words64

_DIRECT: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)


class HookedEngine(Protocol):
    """The engine, as its hook sees it."""

    def syscall_length(self) -> int:
        """Length of the instruction at RIP: 2, and its prefixes."""

    def ended_port_fault(self) -> None:
        """A refused port access was draining and is over now: the instruction was never executed."""

    def fail(self, error: BaseException) -> None:
        """Stop, and have `run` raise that."""


class SyscallSink:
    """A sink of exits whose `syscall` compiled code calls as a function of C. Others may be any object."""

    __slots__ = ()

    def syscall(self, length: int) -> None:
        """SYSCALL of `length` bytes; RIP still at it. The sink sets RIP to where the guest goes on."""
        raise NotImplementedError


class AnySink(Protocol):
    """What handles SYSCALL, whatever its class."""

    def syscall(self, length: int) -> None:
        """As `SyscallSink.syscall`."""


class SyscallHook:
    """The hook of one engine, over the sink of its exits."""

    def __init__(self, engine: HookedEngine, vmcb: v.Vmcb, sink: AnySink) -> None:
        self._engine = engine
        self._keep = vmcb
        self._q = words64(vmcb.q)
        self._sink = sink if isinstance(sink, SyscallSink) else None
        self._syscall = sink.syscall
        self.draining = False
        """A refused port access is draining: what is left of its block may come here and must do nothing."""

    def enter(self, length: int) -> None:
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

    def hooked(self, _engine: int = 0, _data: int | None = None) -> None:
        """The same as a hook of the emulator's, whose arguments these are."""
        length = self._engine.syscall_length()
        self.enter(length)
        q = self._q
        q[v.RIP] = (q[v.RIP] - length) & MASK64  # the emulator adds the length after the hook


def callback(hook: SyscallHook) -> tuple[object, ctypes.c_void_p | None]:
    """What `uc_hook_add` wants: a function, and the data that it is to be called with."""
    address = native_hook(hook)
    if address:
        return ctypes.c_void_p(address), ctypes.c_void_p(id(hook))
    return binding.CB_INSN(hook.hooked), None


def direct_entry(hook: SyscallHook) -> tuple[int, int, object]:
    """The same for a tuned engine: (address of the function, its data, what to keep as long as it is used)."""
    address = native_entry(hook)
    if address:
        return address, id(hook), hook
    function = _DIRECT(lambda _data, length: hook.enter(length))
    return ctypes.cast(function, ctypes.c_void_p).value or 0, 0, function
