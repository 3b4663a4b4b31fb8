# SPDX-License-Identifier: GPL-2.0-only
"""The host's time stamp counter as the guests' own: RDTSC without an exit, in real time.

Linux reads the TSC at every system call, so trapping RDTSC costs a third of all exits. On an x86-64 host the
emulator's RDTSC returns the host's counter; if that can be proven, and the counter's rate measured, guests
may execute RDTSC directly and find the rate in their pvclock record (public header `xen.h`,
`struct vcpu_time_info`). Anything in doubt, and the answer is None: RDTSC traps, as it does in virtual time.
"""

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Mapping
from typing import ClassVar, Final

from pyhv.cpu import binding
from pyhv.cpu.native_code import code
from pyhv.cpu.once import once
from pyhv.frozen import frozen

_READ: Final = "rdtsc; shl rdx, 0x20; or rax, rdx; ret"
_CALIBRATION_NS: Final = 12_000_000
_SLOW: Final = 100_000
"""The guest's clock is set this fraction (1/100,000) slow: refreshing its record never turns it back."""


@frozen
class TscRate:
    """A TSC's frequency as pvclock tells it: ns = ((ticks << shift) * mul) >> 32, shift may be negative."""

    hz: int
    mul: int
    shift: int


def rate(hz: int) -> TscRate:
    """The pvclock numbers of a frequency."""
    shift, scaled = 0, hz
    while scaled > 2_000_000_000:
        scaled >>= 1
        shift -= 1
    while scaled <= 1_000_000_000:
        scaled <<= 1
        shift += 1
    return TscRate(hz, (1_000_000_000 << 32) // scaled, shift)


class HostTsc:
    """The host's counter: `read` it, and its `rate`."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "_code": "the host's",
        "read": "the host's",
        "rate": "the host's",
        "_began": "of this process",
    }

    def __init__(self) -> None:
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(code("rdtsc", _READ))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self.read = ctypes.PYFUNCTYPE(ctypes.c_uint64)(address)
        self._began = self.sample()

    @functools.cached_property
    def rate(self) -> TscRate:
        """Its frequency, measured since this object was made; waits for what is left of 12 ms."""
        ticks, began = self._began
        time.sleep(max(began + _CALIBRATION_NS - time.monotonic_ns(), 0) / 1e9)
        more, ended = self.sample()
        hz = (more - ticks) * 1_000_000_000 // max(ended - began, 1)
        return rate(hz + hz // _SLOW)

    def sample(self) -> tuple[int, int]:
        """(counter, host's monotonic ns) of one moment, the closest of three tries."""
        tries = []
        for _ in range(3):
            before = time.monotonic_ns()
            ticks = self.read()
            after = time.monotonic_ns()
            tries.append((after - before, ticks, (before + after) // 2))
        _, ticks, now = min(tries)
        return ticks, now


@once
def start_measuring() -> HostTsc | None:
    """The host's TSC, whatever it is good for: who will ask `host_tsc` later saves the wait for its rate by
    calling this before. None where there is none, or no executable memory.
    """
    if platform.machine() != "x86_64":
        return None
    try:
        return HostTsc()
    except OSError:
        return None


@once
def host_tsc() -> HostTsc | None:
    """The host's TSC if the emulator's RDTSC is provably the same counter, else None."""
    tsc = start_measuring()
    if tsc is None:
        return None
    if not 100_000_000 <= tsc.rate.hz <= 20_000_000_000:
        return None
    seen = _emulated_read(tsc)
    return tsc if seen is not None else None


def _emulated_read(tsc: HostTsc) -> int | None:
    """Execute RDTSC on a throwaway engine; its value if it lies between two native reads."""
    handle = ctypes.c_void_p()
    binding.check(binding.uc_open(4, 8, ctypes.byref(handle)), "creating an engine")
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page.write(b"\x0f\x31")
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    try:
        binding.check(binding.uc_mem_map_ptr(handle, 0x1000, mmap.PAGESIZE, 7, address), "mapping memory")
        before = tsc.read()
        binding.check(binding.uc_emu_start(handle, 0x1000, 0x1002, 0, 0), "executing RDTSC")
        after = tsc.read()
        halves = []
        for register in (binding.GENERAL_REGISTERS[0], binding.GENERAL_REGISTERS[2]):
            cell = ctypes.c_uint64()
            binding.uc_reg_read(handle, register, ctypes.byref(cell))
            halves.append(cell.value & 0xFFFF_FFFF)
    finally:
        binding.uc_close(handle)
    value = halves[1] << 32 | halves[0]
    return value if before < value < after else None
