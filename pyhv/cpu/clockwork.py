# SPDX-License-Identifier: GPL-2.0-only
"""Two exact ways to take the processor back from a guest.

`BlockBudget` is the deterministic one: a hook at the start of every translated block subtracts the block's
size in bytes from a budget and stops the engine when it is spent. The hook is native code (five
instructions), because Python at every block would be a hundred times slower; where no executable memory is
to be had, `PythonBlockBudget` does the same, exactly and slowly. `Ticker` is the fast one: a thread that
asks the running engine to stop at a deadline, which is exact only when the engine feels a stop at block
starts alone (`Engine.async_stop_safe`).

A budget counts *bytes of guest code executed*; what they are worth in nanoseconds is `clock.py`'s affair.

While somebody looks out for addresses (`lookout.py`), the same hook also compares each block with them.
"""

import ctypes
import mmap
import platform
import threading
import time
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from pyhv.cpu import binding
from pyhv.cpu.native_code import AARCH64, X86_64, code

MOST_ADDRESSES: Final = 256
"""That can be looked out for."""


class Cell(ctypes.Structure):
    """What the hook of one engine works on.

    `budget` in bytes, and the function that stops the engine. While `looking`, the latest block is written
    down (`start`, `size`), and if one of the addresses is in it, `met` is set and the engine stops; `low` and
    `high` are the least and the greatest of them.
    """

    _fields_ = (
        ("budget", ctypes.c_int64),
        ("stop", ctypes.c_uint64),
        ("looking", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("met", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("low", ctypes.c_uint64),
        ("high", ctypes.c_uint64),
        ("addresses", ctypes.c_uint64 * MOST_ADDRESSES),
    )


_SOURCES: Final = {
    # rdi = engine, rsi = the block's address, edx = its size, rcx = cell
    X86_64: f"""
        mov eax, edx
        sub qword ptr [rcx], rax
        js stop
        cmp qword ptr [rcx + {Cell.looking.offset}], 0
        jne look
        ret
    stop:
        jmp qword ptr [rcx + {Cell.stop.offset}]
    look:
        mov [rcx + {Cell.start.offset}], rsi
        mov [rcx + {Cell.size.offset}], rax
        add rax, rsi
        cmp rsi, [rcx + {Cell.high.offset}]
        ja none
        cmp rax, [rcx + {Cell.low.offset}]
        jbe none
        lea r8, [rcx + {Cell.addresses.offset}]
        mov r9, [rcx + {Cell.count.offset}]
    each:
        mov r10, [r8]
        cmp r10, rsi
        jb next
        cmp r10, rax
        jb met
    next:
        add r8, 8
        dec r9
        jnz each
    none:
        ret
    met:
        mov qword ptr [rcx + {Cell.met.offset}], 1
        jmp qword ptr [rcx + {Cell.stop.offset}]
    """,
    # x0 = engine, w2 = block size, x3 = cell
    AARCH64: "ldr x4, [x3]; sub x4, x4, w2, uxtw; str x4, [x3]; tbnz x4, #63, stop; ret;"
    " stop: ldr x5, [x3, #8]; br x5",
}


def native_hook_code(host: str | None = None) -> bytes | None:
    """Machine code of the block hook for a host (`platform.machine()` name), None if there is none."""
    host = host or platform.machine()
    source = _SOURCES.get(host)
    return None if source is None else code(f"block-hook-{host}", source, host)


class BlockBudget:
    """Budget cell and native hook; `hook` and `data` go to `uc_hook_add`. Off x86-64 it cannot look out."""

    native = True

    def __init__(self, code: bytes) -> None:
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(code)
        self.hook: object = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._code)))
        self.cell = Cell(stop=binding.EMU_STOP_ADDRESS)
        self.looks_out = platform.machine() == "x86_64"
        """Whether the hook compares blocks with addresses."""
        address = ctypes.addressof(self.cell)
        self.data = ctypes.c_void_p(address)
        self.addresses = ctypes.addressof(ctypes.c_char.from_buffer(self._code)), address
        """Where the hook and the budget are."""
        self.left = memoryview(self.cell).cast("B").cast("q")
        """`left[0]` is the budget in bytes; negative means spent."""


class PythonBlockBudget:
    """The same contract without native code."""

    native = False
    looks_out = True

    def __init__(self) -> None:
        self.cell = cell = Cell()
        self.data = ctypes.c_void_p(0)
        self.addresses = 0, 0
        self.left = left = memoryview(cell).cast("B").cast("q")

        def count(engine: int, start: int, size: int, _data: int | None) -> None:
            left[0] -= size
            if left[0] < 0:
                binding.uc_emu_stop(engine)
            elif cell.looking:
                cell.start, cell.size = start, size
                if any(start <= address < start + size for address in cell.addresses[: cell.count]):
                    cell.met = 1
                    binding.uc_emu_stop(engine)

        self.hook: object = binding.CB_BLOCK(count)


def make_budget(*, native: bool = True) -> BlockBudget | PythonBlockBudget:
    """The native budget where host and its memory protection allow it, else the Python one."""
    code = native_hook_code() if native else None
    if code is None:
        return PythonBlockBudget()
    try:
        return BlockBudget(code)
    except OSError:  # a host that refuses writable and executable memory
        return PythonBlockBudget()


_NEVER: Final = 3_600_000_000_000
"""An hour, in ns: the thread looks up even if nobody calls."""


class Ticker:
    """Stops the engine that is running when a deadline on the host's monotonic clock has passed.

    `running` is how to stop the engine that executes guest code (`Engine.stop`), None while none does;
    `deadline` is in ns of `time.monotonic_ns`. A stop that comes too early to be seen is repeated at the
    next look.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("_running", "_lock", "deadline", "_wakes_at", "_ended", "_changed", "_thread"),
        "a thread's, of this process",
    )
    RETRY_NS = 100_000
    """After this time a stop is repeated, should it have come too early."""

    def __init__(self) -> None:
        self._running: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self.deadline = 0
        self._wakes_at = 0
        self._ended = False
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> Callable[[], None] | None:
        """How to stop the engine. Once another value is set, the thread calls the old one no more."""
        return self._running

    @running.setter
    def running(self, stop: Callable[[], None] | None) -> None:
        with self._lock:  # the engine may be freed next
            self._running = stop
        if stop is not None:
            self.expedite()

    def expedite(self) -> None:
        """`deadline` has changed: wake the thread if it sleeps longer than that.

        The thread sleeps as long as it can, since each time that it wakes it contends for the interpreter
        with a guest that exits often.
        """
        if self.deadline < self._wakes_at:
            self._changed.set()

    def start(self) -> None:
        """Start the thread (once)."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="pyhv-ticker", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended = True
        self._changed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._ended:
            now = time.monotonic_ns()
            self._wakes_at = now + _NEVER
            if self._running is not None:
                left = self.deadline - now
                if left <= 0:
                    with self._lock:
                        if self._running is not None:
                            self._running()
                    left = self.RETRY_NS
                self._wakes_at = now + left
            self._changed.wait((self._wakes_at - now) / 1e9)
            self._changed.clear()
