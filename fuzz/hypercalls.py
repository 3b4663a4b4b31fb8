# SPDX-License-Identifier: GPL-2.0-only
"""Target `hypercalls`: every hypercall, with guest memory as its input.

An input is a sequence of acts of the two attackers of `world.py`: hypercalls with plausible, spoiled or
random arguments, stores into own memory (entries of tables-to-be, grant entries, rings), and small recipes
of several calls that reach states which chance would not: a frame made a table of some level and linked, an
address mapped at the edge of the address space, a page lent and borrowed, a GDT and an LDT.
"""

import gc
import struct
from collections.abc import Callable
from typing import Any

from fuzz.grammar import Grammar
from fuzz.requests import NUMBERS, REQUESTS, pack, raw
from fuzz.source import Source
from fuzz.target import Target
from fuzz.world import FIRST_GRANT, World
from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.numbers import Evtchn, Gnttab, Hypercall, Mmuext, SegmentBase
from pyhv.abi.structs import GnttabMapGrantRef, MemoryReservation, MmuextOp, MmuUpdate
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.address import MASK64
from pyhv.errors import XenError

READ_ONLY = PTE_P | PTE_A | PTE_NX
READ_WRITE = READ_ONLY | PTE_RW | PTE_D
TABLE = PTE_P | PTE_RW | PTE_US | PTE_A
CHECK_EVERY = 250
"""Hypercalls between two audits."""
THOROUGH_EVERY = 2000
LIFETIME = 6000
"""Hypercalls after which a world is taken down and checked for leaks."""


class Attack:
    """The acts of one attacker, chosen by a source."""

    def __init__(self, world: World, index: int, source: Source) -> None:
        self.world = world
        self.guest = world.guests[index]
        self.source = source
        self.grammar = Grammar(world, self.guest, source)

    def call(self, number: int, *arguments: int) -> int:
        """A hypercall; RAX."""
        full = tuple(value & MASK64 for value in (*arguments, 0, 0, 0, 0, 0)[:5])
        return self.world.call(self.guest, number, full)

    # -- acts ----------------------------------------------------------------------------------------------

    def request(self) -> None:
        """A hypercall with its structures, perhaps spoiled."""
        number = self.source.pick(NUMBERS)
        arguments = list(REQUESTS[number](self.grammar))
        spoil = self.source.u8()
        if spoil >= 216 and arguments:
            at = spoil % len(arguments)
            arguments[at] = (self.grammar.va, self.grammar.count, self.grammar.word)[spoil % 3]()
        self.call(number, *arguments)

    def anything(self) -> None:
        """A number and five arguments of no particular kind."""
        self.call(self.source.u8() if self.source.chance(16) else self.source.u8() & 63, *raw(self.grammar))

    def store(self) -> None:
        """The guest writes words into its memory."""
        where, count = self.grammar.va(), 1 + self.source.below(8)
        words = [self.grammar.word() for _ in range(count)]
        self.guest.poke(where, struct.pack(f"<{count}Q", *words))

    def entries(self) -> None:
        """The guest fills a page with page-table entries, while it may write it."""
        page, upper = self.source.below(26), self.source.chance(128)
        for _ in range(1 + self.source.below(6)):
            value = self.grammar.upper() if upper else self.grammar.leaf()
            self.guest.poke(self.guest.page(page) + 8 * self.grammar.slot(), struct.pack("<Q", value))

    def wipe(self) -> None:
        """A page full of one word."""
        value = self.source.pick((0, 0, MASK64, self.grammar.descriptor()))
        self.guest.poke(self.guest.page(self.source.below(26)), struct.pack("<Q", value) * 512)

    def remap(self, va: int, flags: int) -> None:
        """Map a play page again, to the frame that it began with."""
        number = (va - self.guest.play) >> 12
        self.call(Hypercall.UPDATE_VA_MAPPING, va, self.guest.frames[number] << 12 | flags, 2)

    def protect(self) -> None:
        """A play page becomes read-only or writable."""
        va = self.guest.page(self.source.below(32))
        self.remap(va, self.source.pick((READ_ONLY, READ_ONLY, READ_WRITE, PTE_P | PTE_A)))

    def mmuext(self, command: int, first: int, second: int = 0) -> None:
        """One operation."""
        at = self.guest.put(pack(MmuextOp(cmd=command, arg1=first, arg2=second), self.guest.width))
        self.call(Hypercall.MMUEXT_OP, at, 1, 0, DOMID_SELF)

    def pin(self) -> None:
        """Protect a page and pin it as a table."""
        page = self.source.below(26)
        self.remap(self.guest.page(page), READ_ONLY)
        self.mmuext(self.source.below(4), self.guest.frames[page])

    def link(self, table: int, slot: int, value: int) -> None:
        """One mmu_update."""
        at = self.guest.put(pack(MmuUpdate(ptr=table << 12 | slot << 3, val=value), self.guest.width))
        self.call(Hypercall.MMU_UPDATE, at, 1, 0, DOMID_SELF)

    def chain(self) -> None:
        """Four pages become L4, L3, L2, L1, linked in some slot; the last holds one leaf."""
        guest, first = self.guest, self.source.below(20)
        slots = [self.grammar.slot() for _ in range(4)]
        for level in range(4):
            page = first + level
            value = self.grammar.leaf() if level == 3 else guest.frames[page + 1] << 12 | TABLE
            guest.poke(guest.page(page), struct.pack("<Q", 0) * 512)
            guest.poke(guest.page(page) + 8 * slots[level], struct.pack("<Q", value))
        for level in range(4):
            self.remap(guest.page(first + level), READ_ONLY)
        how = self.source.below(4)
        if how == 0:
            top = 0 if guest.width == 64 else 1
            self.mmuext(Mmuext.PIN_L4_TABLE - top, guest.frames[first + top])
        else:  # the last tables of a chain fit under the guest's own
            at = min(how, len(guest.tables) - 1)
            below = 4 - len(guest.tables) + at
            self.link(guest.tables[at - 1], self.grammar.slot(), guest.frames[first + below] << 12 | TABLE)

    def edge(self) -> None:
        """Map a page at the top of the address space, or all over half a terabyte."""
        guest, first = self.guest, self.source.below(20)
        everywhere = self.source.chance(128)
        for level in (1, 2, 3):
            page = first + level
            value = guest.frames[page + 1] << 12 | (READ_WRITE if level == 3 else TABLE)
            self.remap(guest.page(page), READ_WRITE)
            packed = struct.pack("<Q", value)
            guest.poke(guest.page(page), packed * 512 if everywhere else bytes(4088) + packed)
            self.remap(guest.page(page), READ_ONLY)
        if guest.width == 64:
            self.link(guest.tables[0], 3 if everywhere else 511, guest.frames[first + 1] << 12 | TABLE)
        else:  # the gigabyte from 0x40000000 on; an L2 is what a slot of the first table holds
            self.link(guest.tables[0], 1, guest.frames[first + 2] << 12 | PTE_P)

    def duplicate(self) -> None:
        """A copy of the kernel's L4 becomes the user's table, or the kernel's."""
        guest, page = self.guest, self.source.below(26)
        self.remap(guest.page(page), READ_WRITE)
        ram = guest.domain.ram
        copy = ram.tables[guest.tables[0]].copy()
        if self.source.chance(64):
            copy[self.source.u8() & 15] = 0
        guest.poke(guest.page(page), copy.tobytes())
        self.remap(guest.page(page), READ_ONLY)
        command = self.source.pick((Mmuext.NEW_USER_BASEPTR, Mmuext.NEW_USER_BASEPTR, Mmuext.NEW_BASEPTR))
        self.mmuext(command, guest.frames[page])

    def base(self) -> None:
        """Back to the first tables, or user mode on the kernel's table."""
        command = self.source.pick((Mmuext.NEW_BASEPTR, Mmuext.NEW_USER_BASEPTR))
        self.mmuext(command, self.source.pick((self.guest.tables[0], self.guest.tables[0], 0)))

    def lend(self) -> None:
        """Write a grant entry."""
        table = self.guest.domain.grants.frames
        if not table:
            return
        flags = self.source.pick((1, 1, 1, 5, 0, 2, 0x101, 0x19, 0xFFFF))
        entry = struct.pack("<HHI", flags, self.grammar.domid(), self.grammar.frame() & 0xFFFF_FFFF)
        # The guest maps its grant table somewhere; that mapping is not what is tested here.
        at = (table[0] << 12) + 8 * (FIRST_GRANT + self.source.below(16))
        self.guest.domain.physical.write(at, entry)

    def borrow(self) -> None:
        """Map a grant of another domain over a play page."""
        flags = self.source.pick((2, 6, 3, 7, 1, 5))
        page = self.source.below(26)
        self.guest.windows = [*self.guest.windows[-7:], self.guest.page(page)]
        request = GnttabMapGrantRef(
            host_addr=self.guest.page(page),
            flags=flags,
            ref=self.grammar.ref(),
            dom=self.grammar.domid(),
        )
        self.call(
            Hypercall.GRANT_TABLE_OP, Gnttab.MAP_GRANT_REF, self.guest.put(pack(request, self.guest.width)), 1
        )

    def descriptors(self) -> None:
        """A page of descriptors becomes GDT or LDT, and is used."""
        guest, page = self.guest, self.source.below(26)
        self.remap(guest.page(page), READ_WRITE)
        words = struct.pack("<8Q", 0, *(self.grammar.descriptor() for _ in range(7)))
        guest.poke(guest.page(page), words)
        self.remap(guest.page(page), READ_ONLY)
        if self.source.chance(128):
            self.call(Hypercall.SET_GDT, guest.put(struct.pack("<Q", guest.frames[page]), 1024), 512)
        else:
            self.mmuext(Mmuext.SET_LDT, guest.page(page), 512)
        self.call(Hypercall.SET_SEGMENT_BASE, SegmentBase.GS_USER_SEL, self.grammar.selector())

    def balloon(self) -> None:
        """Give frames back, and take as many; remember what came."""
        guest = self.guest
        count = 1 + self.source.below(4)
        pages = [self.source.below(26) for _ in range(count)]
        command = self.source.pick((1, 1, 0, 6))
        if command == 1 and self.source.chance(200):
            for page in pages:
                self.call(Hypercall.UPDATE_VA_MAPPING, guest.page(page), 0, 2)
        code = "Q" if guest.width == 64 else "I"
        listed = guest.put(struct.pack(f"<{count}{code}", *(guest.frames[page] for page in pages)), 1024)
        request = MemoryReservation(extent_start=listed, nr_extents=count, domid=DOMID_SELF)
        self.call(Hypercall.MEMORY_OP, command, guest.put(pack(request, guest.width)))
        if command != 1:
            self._remember(listed, count)

    def _remember(self, listed: int, count: int) -> None:
        """Frame numbers that a call has stored, and pages of its own that they now stand for."""
        guest = self.guest
        if not guest.domain.alive:
            return
        owner = self.world.machine.frames.owner
        try:
            raw = guest.domain.memory.read(listed, count * guest.width // 8)
        except XenError:
            return
        words = struct.unpack(f"<{count}{'Q' if guest.width == 64 else 'I'}", raw)
        for mfn in words:
            if 0 < mfn < self.world.machine.frames.count and owner[mfn] == guest.domain.domid:
                guest.taken = [*guest.taken[-15:], mfn]
                guest.frames[mfn % 26] = mfn

    def wait(self) -> None:
        """Time passes."""
        self.world.pass_time(self.source.pick((1000, 100_000, 10_000_000, 10**9, 10**12)))

    def other_vcpu(self) -> None:
        """Another vCPU's turn."""
        self.world.switch_vcpu(self.guest, self.source.below(2))

    def ring(self) -> None:
        """Words into a ring's indices, then the bell."""
        guest = self.guest
        page = guest.machine.dom0.frames(guest.domain.domid)[self.source.below(2)] << 12
        offset = self.source.pick((2048, 2052, 2056, 2060, 2068, 3072, 3076, 3080, 3084, 0, 16))
        value = self.source.number(1) if self.source.chance(200) else self.source.number(4)
        guest.domain.physical.write_u32(page + offset, value)
        self.call(
            Hypercall.EVENT_CHANNEL_OP, Evtchn.SEND, guest.put(struct.pack("<I", 1 + self.source.below(2)))
        )


ACTS: tuple[Callable[[Attack], None], ...] = (
    *(Attack.request,) * 16, Attack.anything, Attack.store, Attack.entries, Attack.entries, Attack.wipe,
    Attack.protect, Attack.protect, Attack.pin, Attack.pin, Attack.chain, Attack.edge, Attack.duplicate,
    Attack.base, Attack.lend, Attack.lend, Attack.borrow, Attack.borrow, Attack.descriptors, Attack.balloon,
    Attack.balloon, Attack.wait, Attack.other_vcpu, Attack.ring,
)  # fmt: skip


class Hypercalls(Target):
    """Runs inputs on a world that lives for some thousand hypercalls."""

    name = "hypercalls"
    max_length = 768
    attack = Attack
    acts: tuple[Callable[[Any], None], ...] = ACTS
    """What an attacker may do; a byte chooses."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.world: World | None = None
        self._checked = self._checked_thoroughly = self._counted = 0

    def _fresh(self) -> World:
        world = self.world
        if world is None:
            world = self.world = World(self.width)
            self._checked = self._checked_thoroughly = self._counted = self.count()
        return world

    def count(self) -> int:
        """Steps that the world has seen."""
        assert self.world is not None
        return self.world.hypercalls

    def run(self, data: bytes) -> bytes:
        """Let the attackers act as the input says."""
        world, source = self._fresh(), Source(data)
        self.started = False
        self.steps.clear()
        usable = True
        while source.more and usable:
            self.steps.append(source.at)
            act = source.u8()
            attack = self.attack(world, act >> 7, source)
            self.acts[(act & 127) % len(self.acts)](attack)
            if not all(guest.alive for guest in world.guests):
                world.check()
                usable = world.replace_the_dead()
            self._look(world)
        self.calls += self.count() - self._counted
        self._counted = self.count()
        if not usable or self._counted >= LIFETIME:
            self.finish()
        return source.used()

    def _look(self, world: World) -> None:
        done = self.count()
        if done - self._checked < CHECK_EVERY:
            return
        self._checked = done
        thoroughly = done - self._checked_thoroughly >= THOROUGH_EVERY
        if thoroughly:
            self._checked_thoroughly = done
        world.check(thoroughly=thoroughly)

    def finish(self) -> None:
        """The end of the world: nothing may be left."""
        world, self.world = self.world, None
        self.started = True
        if world is not None:
            try:
                world.finish()
            finally:
                world.close()
                del world
                gc.collect()  # a machine is a knot of references and holds 16 MiB

    def abandon(self) -> None:
        """Drop a world that may be damaged."""
        world, self.world = self.world, None
        self.started = True
        if world is not None:
            world.close()
            del world
            gc.collect()


class Hypercalls32(Hypercalls):
    """The same from 32-bit attackers."""

    name = "hypercalls32"

    def __init__(self) -> None:
        super().__init__(32)
