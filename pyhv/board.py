# SPDX-License-Identifier: GPL-2.0-only
"""The board: what the machine is made of before anybody runs on it.

RAM and the table that says whose each frame is, the machine-to-physical tables, the frames that Xen keeps for
itself, the clock, and how the emulator is set up. It knows no domain: whoever gives frames to domains says
with `on_free` what is to happen when one changes hands.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from pyhv.abi.domid import DOMID_FIRST_RESERVED, DOMID_XEN
from pyhv.abi.x86 import RESERVED_DESCRIPTORS, RESERVED_DESCRIPTORS_COMPAT
from pyhv.address import ENTRIES, Mfn
from pyhv.clock import BIRTHDAY, Clock, RealClock, VirtualClock
from pyhv.cpu.engine import can_stop_at_any_time
from pyhv.cpu.host import give_back_large_blocks
from pyhv.cpu.ram import Ram
from pyhv.cpu.selftest import require_executable_memory, self_test
from pyhv.cpu.tsc import host_tsc, start_measuring
from pyhv.cpu.tuning.gate import tuning
from pyhv.errors import ConfigError
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.paging import MachineToPhysical
from pyhv.mmu.physical import PhysicalMemory
from pyhv.paced import PacedClock

FRAMES_A_DOMAIN: Final = 64
"""Frames that the board adds for Xen for each domain that it is meant for: copies of its L4s, tables of its
descriptors, shared pages. The machine-to-physical tables come on top, a 256th part."""
USUAL_DOMAINS: Final = 64
"""How many domains a machine is meant for if nobody says so."""
MAX_MEMORY_PAGES: Final = 1 << 23
"""32 GiB: below, no reference count of a frame can overflow, whatever a guest maps."""


def frames_for(memory_pages: int, max_domains: int) -> int:
    """How many frames a board has with so many for its guests."""
    return memory_pages + memory_pages // 256 + max_domains * FRAMES_A_DOMAIN


class Board:
    """Memory for `memory_pages` of guests, and a clock: of executed code if `virtual_time`, else the host's.

    For more than `max_domains` at once, Xen may want frames that were meant for guests. `tuned`: change the
    emulator's hot paths where that is proven to be right (`cpu/tuning/`). ConfigError: a size that is not
    possible, here or on this host.

    Its own frames are at the same numbers on every board of this size, and what is in them is in memory.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("ram", "frames", "physical", "m2p", "clock"), "says its own"),
        **dict.fromkeys(("tuning", "counts_blocks"), "of this process"),
        "on_free": "given",
        **dict.fromkeys(("zero_frame", "xen_gdt"), "the same on every board of this size"),
    }

    def __init__(
        self,
        memory_pages: int,
        *,
        max_domains: int,
        virtual_time: bool,
        tuned: bool,
        paced: bool = False,
        wall_ns: int = BIRTHDAY,
    ) -> None:
        if not 0 < memory_pages <= MAX_MEMORY_PAGES:
            raise ConfigError(
                f"A machine of {memory_pages >> 8} MiB is not possible; choose 1 MiB to 32 GiB."
            )
        if not 0 < max_domains < DOMID_FIRST_RESERVED:
            raise ConfigError(f"A machine for {max_domains} domains is not possible.")
        if not virtual_time and not paced:
            start_measuring()  # the host's clock, while the proofs run
        require_executable_memory()
        self.tuning = tuning() if tuned else None
        if self.tuning is None or not self.tuning.active:  # else proven with the changes
            self_test()
        give_back_large_blocks()
        self.ram = Ram(frames_for(memory_pages, max_domains))
        self.frames = FrameTable(self.ram)
        self.physical = PhysicalMemory(self.ram, self.frames)
        self.frames.on_free, self.frames.on_death = self._frame_freed, self.physical.code_gone
        self.on_free: Callable[[int, int], None] = lambda _mfn, _owner: None
        """Told (frame, its owner's domid) before a frame changes hands."""
        self.m2p = MachineToPhysical(self.ram, self.frames)
        (self.zero_frame,) = self.frames.allocate_xen()
        """Stands in for descriptor pages that a guest did not supply, and for memory that is not there."""
        self.xen_gdt = {
            64: self._gdt_page(RESERVED_DESCRIPTORS),
            32: self._gdt_page(RESERVED_DESCRIPTORS_COMPAT),
        }
        """The page with the hypervisor's part of the GDT, by the guest's width."""
        self.clock: Clock
        if virtual_time:
            self.clock = VirtualClock(wall_ns)
        else:
            self.clock = PacedClock() if paced else RealClock(host_tsc())
        self.counts_blocks = self.clock.counted or not can_stop_at_any_time()
        """Whether engines are to count what they execute."""

    def _gdt_page(self, descriptors: Mapping[int, int]) -> Mfn:
        (page,) = self.frames.allocate_xen()
        for selector, descriptor in descriptors.items():
            self.ram.store_u64(page << 12 | selector & 0xFF8, descriptor)
        return page

    def audit(self) -> list[str]:
        """What of the frames that Xen keeps for itself is not as it was made; empty if nothing."""
        expected: dict[Mfn, dict[int, int]] = {
            self.zero_frame: {},
            self.xen_gdt[64]: RESERVED_DESCRIPTORS,
            self.xen_gdt[32]: RESERVED_DESCRIPTORS_COMPAT,
        }
        findings = []
        for mfn, descriptors in expected.items():
            words = [0] * ENTRIES
            for selector, descriptor in descriptors.items():
                words[(selector & 0xFFF) >> 3] = descriptor
            if self.frames.owner[mfn] != DOMID_XEN or self.ram.tables[mfn].tolist() != words:
                findings.append(f"{self.frames.describe(mfn)} is not as the board has made it")
        return findings

    def _frame_freed(self, mfn: Mfn, owner: int) -> None:
        """Before a frame changes hands: no stale translation of it, no stale code from it."""
        self.on_free(mfn, owner)
        if self.frames.code[mfn]:
            self.physical.code_written(mfn)
            self.frames.code[mfn] = 0  # nobody maps it, nor can by his TLB when he runs on

    def close(self) -> None:
        """End the clock's thread, if it has one."""
        self.clock.close()
