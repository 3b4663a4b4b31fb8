# SPDX-License-Identifier: GPL-2.0-only
"""The bare engine: a processor of the same emulator that runs `bench/guests/work.S` without a hypervisor.

What it shares with pyhv is the library, tuned if pyhv's engines are, and, if asked, the very same native
block hook (the clock of virtual time); what it lacks is everything else: no domain, no exits, no timer, no
scheduler. Paging is on, since a PV kernel pays for it too, and the pages behind the code are not executable,
as in a kernel that cares.

    0x000000   four page tables: L4, L3, L2, L1 of the first 2 MiB
    0x100000   the image, at the addresses it is linked for
"""

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path

from pyhv.cpu import binding
from pyhv.cpu.clockwork import BlockBudget, make_budget
from pyhv.cpu.probe import find_no_exit_request
from pyhv.cpu.ram import Ram
from pyhv.cpu.tuning.gate import tuning
from pyhv.guests.build import build
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage

WORK = Path(__file__).parent / "guests" / "work.S"
_FRAMES = 512
_ARCH_X86, _MODE_64 = 4, 8
_PROT_ALL = 7
_ENDLESS = 1 << 62
_P_RW_A_D = 0x63
_P_RW_A = 0x23
_NX = 1 << 63


def load_work() -> KernelImage:
    """The image of `work.S`."""
    return load_image(build(WORK), "work")


@dataclass(frozen=True, slots=True)
class Result:
    """One run of the work: seconds of the host's clock and of this thread's, and the sum that it left."""

    seconds: float
    thread_s: float
    result: int


class Bare:
    """One bare processor with the work in its memory. `close` it."""

    def __init__(self, image: KernelImage, *, count_blocks: bool) -> None:
        self._addresses = {symbol.name: symbol.va for symbol in image.symbols}
        self._ram = Ram(_FRAMES)
        for segment in image.segments:
            self._ram.writable.raw[segment.paddr : segment.paddr + segment.filesz] = segment.data
        code_end = max(segment.vaddr + segment.memsz for segment in image.segments if segment.flags & 1)
        self._build_tables(code_end >> 12)
        handle = ctypes.c_void_p()
        binding.check(binding.uc_open(_ARCH_X86, _MODE_64, ctypes.byref(handle)), "creating an engine")
        self._handle = handle
        binding.check(
            binding.uc_ctl(handle, ctypes.c_uint(binding.CTL_TLB_TYPE), ctypes.c_int(binding.TLB_CPU)),
            "configuring the engine",
        )
        self._registers()
        binding.check(
            binding.uc_mem_map_ptr(handle.value, 0, self._ram.size, _PROT_ALL, self._ram.address), "mapping"
        )
        offset = find_no_exit_request()
        if offset is not None:  # pyhv does the same wherever it can
            ctypes.c_bool.from_address((handle.value or 0) + offset).value = True
        self._keep: list[object] = []
        self.counts_natively = False
        counter = (0, 0)
        if count_blocks:
            budget = make_budget()
            budget.left[0] = _ENDLESS
            counter = budget.addresses
            self.counts_natively = isinstance(budget, BlockBudget)
            self._keep.append(budget)
            self._hook(binding.HOOK_BLOCK, budget.hook, budget.data)
        self._block = tuning().attach(handle.value or 0, self._ram, counter) if offset is not None else None

    def _build_tables(self, first_data_page: int) -> None:
        tables = self._ram.writable.tables
        for level in range(3):
            tables[level][0] = (level + 1) << 12 | _P_RW_A
        for page in range(512):
            tables[3][page] = page << 12 | _P_RW_A_D | (_NX if page >= first_data_page else 0)

    def _registers(self) -> None:
        efer = binding.MsrAccess(0xC000_0080, 0xD01)
        binding.check(binding.uc_reg_write(self._handle, binding.REG_MSR, ctypes.byref(efer)), "setting EFER")
        for register, value in (
            (binding.REG_CR4, 0x620), (binding.REG_CR3, 0), (binding.REG_CR0, 0x8005_0033),
        ):  # fmt: skip
            cell = ctypes.c_uint64(value)
            binding.check(
                binding.uc_reg_write(self._handle, register, ctypes.byref(cell)), "setting a register"
            )

    def _hook(self, kind: int, callback: object, data: ctypes.c_void_p | None = None) -> None:
        self._keep.append(callback)
        number = ctypes.c_size_t()
        binding.check(
            binding.uc_hook_add(
                self._handle, ctypes.byref(number), ctypes.c_int(kind), callback,
                data or ctypes.c_void_p(0), ctypes.c_uint64(1), ctypes.c_uint64(0),
            ),
            "installing a hook",
        )  # fmt: skip

    def run(self, rounds: int | None = None) -> Result:
        """Do the work once, `rounds` times over the table (None: as the image says)."""
        if rounds is not None:
            self._ram.store_u64(self._addresses["rounds"], rounds)
        began, computed = time.perf_counter(), time.thread_time()
        code = binding.uc_emu_start(
            self._handle, self._addresses["bare_start"], self._addresses["bare_end"], 0, 0
        )
        seconds, computed = time.perf_counter() - began, time.thread_time() - computed
        binding.check(code, "running bare code")
        return Result(seconds, computed, self._ram.q[self._addresses["result"] >> 3])

    def count_instructions(self, rounds: int) -> int:
        """Instructions of the work with `rounds`, counted one by one; this engine is slow ever after."""
        seen = 0

        def one(_engine: int, _address: int, _size: int, _data: int | None) -> None:
            nonlocal seen
            seen += 1

        self._hook(binding.HOOK_CODE, binding.CB_BLOCK(one))
        self.run(rounds)
        return seen

    def rounds(self) -> int:
        """What the image says."""
        return self._ram.q[self._addresses["rounds"] >> 3]

    def close(self) -> None:
        """Free the engine."""
        if self._block is not None:
            self._block.detach()
        binding.uc_close(self._handle)


def instructions_per_round(image: KernelImage) -> float:
    """How many instructions one round over the table executes, from a count of some rounds."""
    few, more = 2, 10
    counts = []
    for rounds in (few, more):
        engine = Bare(image, count_blocks=False)
        try:
            counts.append(engine.count_instructions(rounds))
        finally:
            engine.close()
    return (counts[1] - counts[0]) / (more - few)
