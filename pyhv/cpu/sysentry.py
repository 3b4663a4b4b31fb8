# SPDX-License-Identifier: GPL-2.0-only
"""Where SYSCALL comes in: the one hook that is called for each system call and each hypercall.

The emulator calls it with RIP at the instruction, and adds the instruction's length to RIP when it returns.
The hook is a native function where this module is compiled, and else a callback of `ctypes`; both end here,
in `SyscallHook.enter`.
"""

import ctypes
from typing import Final, Protocol

from pyhv.address import MASK64, PAGE_MASK, PAGE_SHIFT
from pyhv.cpu import binding
from pyhv.cpu import vmcb as v
from pyhv.cpu.words import native_entry, octets, words32, words64

_OPCODE: Final = 0x0F


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

    def __init__(
        self,
        engine: HookedEngine,
        vmcb: v.Vmcb,
        raw: memoryview,
        pages: dict[int, int],
        sink: AnySink,
    ) -> None:
        self._engine = engine
        self._keep = vmcb, raw
        self._q, self._d = words64(vmcb.q), words32(vmcb.d)
        self._raw = octets(raw)
        self._pages = pages
        self._sink = sink if isinstance(sink, SyscallSink) else None
        self._syscall = sink.syscall
        self.draining = False
        """A refused port access is draining: what is left of its block may come here and must do nothing."""

    def enter(self, _engine: int = 0, _data: int | None = None) -> None:
        """SYSCALL is about to be executed. The arguments are those of a callback."""
        q, pages = self._q, self._pages
        rip = q[v.RIP]
        page = pages.get(rip >> PAGE_SHIFT)
        if page is None or self._raw[page | rip & PAGE_MASK] != _OPCODE or not self._d[v.HFLAGS] & v.HF_CS64:
            length = self._engine.syscall_length()
        else:
            length = 2  # by far the usual case
        try:
            if self.draining:
                self._engine.ended_port_fault()
            elif self._sink is not None:
                self._sink.syscall(length)
            else:
                self._syscall(length)
        except BaseException as error:
            self._engine.fail(error)
        q[v.RIP] = (q[v.RIP] - length) & MASK64  # the emulator adds the length after the hook


def callback(hook: SyscallHook) -> tuple[object, ctypes.c_void_p | None]:
    """What `uc_hook_add` wants: a function, and the data that it is to be called with."""
    address = native_entry(hook)
    if address:
        return ctypes.c_void_p(address), ctypes.c_void_p(id(hook))
    return binding.CB_INSN(hook.enter), None
