# SPDX-License-Identifier: GPL-2.0-only
"""`Paused32`: the paused guest of `guest_machine` with a 32-bit kernel, a GDT and an LDT of its own.

Its scratch pages belong to ring 3 too, but for the last two, which hold the kernel's stacks.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pyhv.abi.numbers import Hypercall, Mmuext
from pyhv.address import MASK32
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble
from pyhv.domain.callbacks import CallbackEntry
from pyhv.machine import Machine
from pyhv.testing.guest_machine import Paused, machine

RING1_CS, RING1_DS, RING3_CS, RING3_DS = 0xE019, 0xE021, 0xE02B, 0xE033
CODE1, DATA1 = 0x00CF_BB00_0000_FFFF, 0x00CF_B300_0000_FFFF
CODE3, DATA3 = 0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF
CONFORMING1: Final = 0x00CF_BF00_0000_FFFF
PRESENT: Final = 1 << 47
GDT: Final = [CODE3, DATA3, CODE3 & ~PRESENT, DATA3 & ~PRESENT, CODE1, DATA1, DATA3 & ~(2 << 40), CONFORMING1]
G_CODE3, G_DATA3, G_ABSENT_CODE, G_ABSENT_DATA, G_CODE1, G_DATA1, G_READ_ONLY, G_CONFORMING = range(8, 72, 8)
"""A GDT with one descriptor of each kind from entry 1 on, and their selectors."""
EVENT, FAILSAFE, SYSCALL32, SYSENTER = range(256, 260)
USER, READ_ONLY, KERNEL_RW, USER_RW = 4, 0x21, 0x63, 0x67

_CODE, _HANDLERS, _FREE, _STACK, _USER_STACK = 0x8000, 0xA000, 0xC000, 0xF000, 0xD800
_KERNEL_STACK: Final = 0xF800
_PAGES: Final = 16

HEADER: Final = """
.width 32
.include "xen.inc"
.include "kernel32.inc"
"""


def gate(selector: int, offset: int, *, dpl: int = 3, parameters: int = 0, present: bool = True) -> int:
    """A 32-bit call gate as a guest writes it."""
    high = offset & 0xFFFF_0000 | present << 15 | dpl << 13 | 0xC00 | parameters
    return high << 32 | selector << 16 | offset & 0xFFFF


def with_base(descriptor: int, base: int) -> int:
    """A descriptor with another base."""
    return descriptor & ~0xFF00_00FF_FFFF_0000 | (base & 0xFF_FFFF) << 16 | base >> 24 << 56


def with_limit(descriptor: int, limit: int) -> int:
    """A descriptor with another limit, in bytes, below 1 MiB."""
    return descriptor & ~0x008F_0000_0000_FFFF | limit & 0xFFFF | limit >> 16 << 48


class Paused32(Paused):
    """A built 32-bit guest that has not run yet."""

    SOURCE = (
        HEADER
        + """
.text
_start:
    kernel_entry
    succeed
.bss
.balign PAGE_SIZE
scratch: .zero 16 * PAGE_SIZE
"""
    )

    def __init__(self, made: Machine, *, vcpus: int = 1) -> None:
        super().__init__(made, self.SOURCE, vcpus=vcpus)
        for number in range(_PAGES - 1):
            assert self.remap(self.page(number), USER_RW) == 0
        self.vcpu.kernel_stack.ss, self.vcpu.kernel_stack.sp = RING1_DS, self.kernel_stack

    def hypercall(self, number: int, *arguments: int) -> int:
        """A hypercall as INT 0x82 enters it, from ring 1; EAX afterwards."""
        registers = (v.RBX, v.RCX, v.RDX, v.RSI, v.RDI, v.RBP)
        for register, value in zip(registers, arguments, strict=False):
            self.q[register] = value
        self.q[v.RAX] = number
        self.cpu.vmcb.d[v.EXCEPTION_IS_INT] = 1
        self.dispatcher.exception(0x82)
        return self.q[v.RAX]

    # -- descriptors ---------------------------------------------------------------------------------------

    def gdt(self, *descriptors: int) -> None:
        """A GDT of these descriptors from entry 1, in scratch page 0."""
        self.put(struct.pack(f"<{len(descriptors) + 1}Q", 0, *descriptors))
        assert self.remap(self.page(0), READ_ONLY) == 0
        frames = self.put(struct.pack("<I", self.mfn(self.page(0))), _FREE)
        assert self.set_gdt(frames, len(descriptors) + 1) == 0

    def ldt(self, *descriptors: int) -> None:
        """An LDT of these descriptors from entry 0, in scratch page 1."""
        self.put(struct.pack(f"<{len(descriptors)}Q", *descriptors), 0x1000)
        assert self.remap(self.page(1), READ_ONLY) == 0
        self.set_ldt(self.page(1), len(descriptors))

    def set_ldt(self, address: int, entries: int) -> None:
        """MMUEXT_SET_LDT."""
        assert self.mmuext(Mmuext.SET_LDT, address, entries) == 0

    # -- running code ----------------------------------------------------------------------------------------

    def handlers(self, flags: int = 0) -> None:
        """Register a handler for every vector and callback, in ring 1; each does nothing for ever."""
        super().handlers(flags)
        vcpu = self.vcpu
        vcpu.traps.selectors = [RING1_CS] * 256
        vcpu.callbacks.event = CallbackEntry(self.handler(EVENT), True, RING1_CS)
        vcpu.callbacks.failsafe = CallbackEntry(self.handler(FAILSAFE), True, RING1_CS)

    def load(self, code: str | bytes, offset: int = _CODE) -> int:
        """Put 32-bit code into the scratch pages, an endless loop behind it; where its end is."""
        address = self.scratch + offset
        raw = code if isinstance(code, bytes) else assemble(code.replace(";", "\n"), address, width=32)
        self.put(raw + b"\xeb\xfe", offset)
        self.end = address + len(raw)
        return self.end

    @property
    def code(self) -> int:
        """Where code that is run begins."""
        return self.scratch + _CODE

    @property
    def stack(self) -> int:
        """Where `execute` puts ESP."""
        return self.scratch + _STACK

    @property
    def user_stack(self) -> int:
        """Where `user` puts ESP."""
        return self.scratch + _USER_STACK

    def into_kernel(self) -> None:
        """Back to ring 1 with flat segments, wherever the guest is."""
        self.cpu.load_return_segments(RING1_CS, RING1_DS)
        for segment in (v.ES, v.DS, v.FS, v.GS):
            self.cpu.vmcb.set_segment(segment, RING1_DS, 0, MASK32, 0x00CF_B300)

    def execute(self, code: str | bytes, stop: int | None = None) -> int | None:
        """Run code in ring 1 until it ends, is at `stop`, or in a handler; that handler, or None."""
        if not self.vcpu.in_kernel:
            self.into_kernel()
        end = self.load(code)
        self.q[v.RIP], self.q[v.RSP], self.q[v.RBX] = self.code, self.stack, self.scratch + _FREE
        return self.go(end if stop is None else stop)

    def iret(self, **frame: int) -> int:
        """The iret hypercall; its frame, unless told otherwise, goes to the code page in ring 3."""
        names = ["eax", "eip", "cs", "eflags", "esp", "ss"]
        values = dict.fromkeys(names, 0) | {
            "eip": self.code, "cs": RING3_CS, "eflags": 0x202, "esp": self.user_stack, "ss": RING3_DS,
        } | frame  # fmt: skip
        self.q[v.RSP] = self.put(struct.pack("<6I", *(values[name] for name in names)), _FREE)
        return self.hypercall(Hypercall.IRET)

    def user(self, code: str | bytes, stop: int | None = None, **frame: int) -> int | None:
        """Run code in ring 3, with flat data segments, until it ends, is at `stop`, or in a handler."""
        if not self.vcpu.in_kernel:
            self.into_kernel()
        end = self.load(code)
        for segment in (v.ES, v.DS, v.FS, v.GS):
            self.cpu.vmcb.set_segment(segment, RING3_DS, 0, MASK32, 0x00CF_F300)
        self.iret(**frame)
        self.q[v.RBX] = self.scratch + _FREE
        return self.go(end if stop is None else stop)

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """32-bit words of the guest's memory."""
        return self.domain.memory.read_words(address, count)

    def frame(self, *, error: bool = False) -> dict[str, int]:
        """The bounce frame at ESP; esp and ss only mean something if it is from ring 2 or 3."""
        names = [*(["error"] if error else []), "eip", "cs", "eflags", "esp", "ss"]
        return dict(zip(names, self.words(self.q[v.RSP] & MASK32, len(names)), strict=True))


@contextmanager
def paused32(*, vcpus: int = 1) -> Iterator[Paused32]:
    """A `Paused32` guest on a machine of its own."""
    with machine() as made:
        yield Paused32(made, vcpus=vcpus)
