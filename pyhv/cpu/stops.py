# SPDX-License-Identifier: GPL-2.0-only
"""Stops that no instruction can see: a request waits beside the emulator until a block has ended.

`uc_emu_stop` sets a flag that the emulator also looks at in the middle of a block. CPUID, IN, OUT, SYSENTER
and SYSCALL walk the list of instruction hooks, and give up half-way when that flag is set: the instruction
is then skipped, or answered by the emulator itself. So pyhv never sets it while a block executes. A request
is *posted*: a word of our own is set, and the emulator is asked, by the flag that it looks at only where a
block starts (`cpu_exit`), to come back to its outer loop. That loop calls `cpu_exec`, through the library's
own table of procedure pointers; a few instructions stand in that slot, and when `cpu_exec` has returned
they turn the posted word into the stop:

    any thread            post: wanted = 1, cpu_exit           nothing is seen inside the block
    the engine's thread   next block starts                    the emulator leaves, RIP at that block
                          cpu_exec has returned                wanted? 0, and uc_emu_stop

The same instructions note which host thread executes which engine, for `guard.py`.

Specified by nothing but the library's source (2.1.4). Where a slot or a function is missing - another build,
another host - `posted_stops` is None; engines then stop themselves by counting blocks (`clockwork.py`).
"""

import ctypes
import functools
import mmap
import platform
from collections.abc import Callable
from typing import Final

from pyhv.cpu import binding
from pyhv.cpu.native_code import templates
from pyhv.cpu.once import lock, once
from pyhv.cpu.slots import library

_EXCP_INTERRUPT: Final = 0x10000
"""What `cpu_exec` returns when it was asked to come back, and for no other reason."""

_AROUND: Final = """
    push rbx
    push r12
    sub rsp, 8
    mov rbx, rdi
    movabs r12, {first}
look:
    mov r12, [r12 + 8]
    test r12, r12
    jz execute
    cmp [r12], rbx
    jne look
    xor ecx, ecx
    mov rcx, fs:[rcx]
    mov [r12 + 40], rcx
execute:
    movabs rax, {cpu_exec}
    call rax
    test r12, r12
    jz done
    mov qword ptr [r12 + 40], 0
    cmp eax, {interrupted}
    jne done
    xor edx, edx
    xchg [r12 + 16], rdx
    test rdx, rdx
    jz done
    mov rdi, rbx
    movabs rax, {emu_stop}
    call rax
    mov eax, {interrupted}
done:
    add rsp, 8
    pop r12
    pop rbx
    ret
"""
_POST: Final = """
    mov qword ptr [rdi + 16], 1
    mov rdi, [rdi + 24]
    movabs rax, {cpu_exit}
    jmp rax
"""


class Seat(ctypes.Structure):
    """One engine's place in the list that the native code walks: its handle, the next seat's address, whether
    a stop is posted, where its processor and that one's state are, the host thread that executes it (the
    address of the thread's control block, 0 while none does), and how often the library wanted to abort for
    it (`guard.py`).

    A seat is used again, never freed: another thread may be walking over it.
    """

    _fields_ = (
        ("engine", ctypes.c_uint64),
        ("next", ctypes.c_uint64),
        ("wanted", ctypes.c_uint64),
        ("processor", ctypes.c_uint64),
        ("state", ctypes.c_uint64),
        ("thread", ctypes.c_uint64),
        ("aborts", ctypes.c_uint64),
    )


class PostedStops:
    """The process's list of engines that can be stopped by posting, and the native code that serves it."""

    def __init__(self, slot: ctypes.c_uint64, cpu_exec: int, cpu_exit: int) -> None:
        self._seats = [Seat()]
        self.first_seat = ctypes.addressof(self._seats[0])
        """Where the list begins, with a seat that no engine has."""
        self._free: list[Seat] = []
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        around, post = templates("stops", _AROUND, _POST, constants={"interrupted": _EXCP_INTERRUPT})
        values = {
            "cpu_exec": cpu_exec, "cpu_exit": cpu_exit, "emu_stop": binding.EMU_STOP_ADDRESS,
            "first": self.first_seat,
        }  # fmt: skip
        self._code.write(around.link(0, values) + post.link(0, values))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self.post_address = address + len(around.code)
        """A native function of one argument, an engine's seat: what `Engine.stop` calls; any thread may."""
        self._post = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(self.post_address)
        slot.value = address

    def enter(self, engine: int, processor: int, state: int) -> tuple[Seat, Callable[[], None]]:
        """A seat for an engine, by its handle and the addresses of its processor and of the state block, and
        how to post a stop to it."""
        with lock:
            if self._free:
                seat = self._free.pop()
            else:
                seat = Seat(next=self._seats[0].next)
                self._seats.append(seat)
                self._seats[0].next = ctypes.addressof(seat)
        seat.wanted, seat.processor, seat.state, seat.engine = 0, processor, state, engine
        return seat, functools.partial(self._post, ctypes.addressof(seat))

    def leave(self, seat: Seat) -> None:
        """Give a seat back; its engine must not run, and nobody may post to it any more."""
        seat.engine = 0
        self._free.append(seat)


@once
def posted_stops() -> PostedStops | None:
    """The process's list, set up at the first call; None if this library cannot be served so."""
    cpu_exec = binding.symbol_address("cpu_exec_x86_64")
    cpu_exit = binding.symbol_address("cpu_exit")
    slot = library().slot("cpu_exec_x86_64")
    if platform.machine() != "x86_64" or cpu_exec is None or cpu_exit is None or slot is None:
        return None
    try:
        return PostedStops(slot, cpu_exec, cpu_exit)
    except OSError:  # a host that refuses writable and executable memory
        return None
