# SPDX-License-Identifier: GPL-2.0-only
"""Numbers that an attacker would try: frames, addresses, page-table entries, domains, ports, handles.

Each is chosen by a byte or two of the input. Most are plausible, so that calls get past their first checks;
the rest are what the checks are for.
"""

from fuzz.source import Source
from fuzz.world import FIRST_GRANT, PAGES, PLAY_PAGES, Guest, World
from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.address import MASK32, MASK64

_READ, _WRITE = PTE_P | PTE_A | PTE_NX, PTE_P | PTE_RW | PTE_A | PTE_D | PTE_NX
_UPPER, _LINEAR = PTE_P | PTE_RW | PTE_US | PTE_A, PTE_P | PTE_US | PTE_A
LEAF_FLAGS = (
    _READ, _WRITE, _READ | PTE_US, _WRITE | PTE_US, PTE_P | PTE_A, PTE_P | PTE_RW | PTE_US, PTE_P,
    PTE_P | PTE_RW | PTE_A | PTE_D, 0, PTE_RW | PTE_US, _WRITE | 0x80, _WRITE | 0x18, _READ | 0xE00,
    _WRITE | 1 << 52, _READ | 0x100, _WRITE | 0x7FF << 52,
)  # fmt: skip
UPPER_FLAGS = (_UPPER, _UPPER, _LINEAR, _UPPER | PTE_NX, PTE_P, _UPPER | 0x80, _LINEAR | 0x100, 0)
EDGES = (0, 1, 7, 8, 16, 2048, 4096 - 64, 4096 - 16, 4096 - 8, 4096 - 7, 4096 - 4, 4096 - 1)
ADDRESSES = (
    0, 1, 0xFFF, 0x1000, 0x7FFF_FFFF_F000, 0x7FFF_FFFF_FFF8, 0x8000_0000_0000, 0xDEAD_BEEF_0000_0000,
    0xFFFF_7FFF_FFFF_FFF8, 0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_1008, 0xFFFF_8200_0000_0000,
    0xFFFF_8200_0000_E000, 0xFFFF_87FF_FFFF_FFF8, 0xFFFF_8800_0000_0000, 0xFFFF_FFFF_FFFF_F000,
    0xFFFF_FFFF_FFFF_FC00, 0xFFFF_FFFF_FFFF_FFF0, 0xFFFF_FFFF_FFFF_FFF8, MASK64,
    3 << 39, (3 << 39) + 0xC00, 0x7000_0000_0000,
)  # fmt: skip
ADDRESSES_32 = (
    0,
    1,
    0xFFF,
    0x1000,
    0x4000_0000,
    0x7FFF_F000,
    0x8000_0000,
    0xBFFF_FFF8,
    0xC000_0000,
    0xF57F_FFF8,
    0xF57F_FC00,
    0xF580_0000,
    0xF580_0008,
    0xFFDF_FFFF,
    0xFFE0_0000,
    0xFFFF_F000,
    0xFFFF_FC00,
    0xFFFF_FFFF,
    1 << 32,
    1 << 47,
)
COUNTS = (
    1, 1, 1, 2, 3, 4, 8, 0, 63, 64, 65, 128, 512, 513, 7168, 7169, 1 << 31, 1 << 31 | 1, 1 << 31 | 70,
    0x7FFF_FFFF, MASK32, 1 << 32, 1 << 53, MASK64,
)  # fmt: skip
DOMIDS = (DOMID_SELF, DOMID_SELF, 1, 2, 3, 4, 5, 0, 0x7FF1, 0x7FF2, 0x7FF3, 0x7FF4, 0x7FFF, 0xFFFF)
TIMES = (0, 1, 1000, 100_000, 1_000_000, 10**9, 1 << 40, 1 << 62, 1 << 63, MASK64)


class Grammar:
    """Choices for calls by `guest` on the stage `world`, made by `source`."""

    def __init__(self, world: World, guest: Guest, source: Source) -> None:
        self.world = world
        self.guest = guest
        self.source = source

    def play_frame(self) -> int:
        """A frame that the guest began with for this purpose, or was given."""
        guest = self.guest
        number = self.source.u8()
        if number >= 224 and guest.taken:
            return guest.taken[number % len(guest.taken)]
        return guest.frames[number % PLAY_PAGES]

    def frame(self) -> int:
        """A frame number, most often an own one."""
        source, guest, world = self.source, self.guest, self.world
        how = source.u8()
        if how < 140:
            return guest.frames[how % PLAY_PAGES]
        if how < 160:
            return guest.tables[how % len(guest.tables)]
        if how < 168:
            return guest.taken[how % len(guest.taken)] if guest.taken else guest.frames[how & 7]
        if how < 172:
            return guest.domain.shared_info.mfn
        if how < 176:
            return guest.domain.grants.frames[source.u8() % len(guest.domain.grants.frames or [0])]
        if how < 180:
            return guest.rings[how & 1]
        if how < 190:
            return guest.first_mfn + source.number(2) % PAGES
        if how < 206:
            return world.guests[how & 1].frames[source.below(PLAY_PAGES)]
        if how < 212:
            return world.victim.frames[source.below(PLAY_PAGES)]
        if how < 220:
            other = world.guests[how & 1]
            hidden = [*other.tables, other.domain.shared_info.mfn, *other.rings]
            return source.pick(hidden)
        return self._odd_frame(how)

    def _odd_frame(self, how: int) -> int:
        world, source = self.world, self.source
        machine = world.machine
        if how < 228:
            hidden = [*machine.board.m2p.frames, machine.board.zero_frame, *machine.board.xen_gdt.values()]
            hidden += [copy for _, _, copy in self.guest.domain.cache.copies()]
            return hidden[source.u8() % len(hidden)]
        if how < 232:
            free = machine.frames.free_list().tolist()
            return free[source.u8() % len(free)] if free else 0
        if how < 240:
            return int(self.guest.vcpu.paging.kernel_l4 if how & 1 else self.guest.vcpu.paging.user_l4)
        if how < 244:
            return source.number(2)
        count = machine.frames.count
        return (
            0, count - 1, count, count + 1, (1 << 40) - 1, 1 << 40, (1 << 52) - 1, MASK64,
            MASK32, 1 << 31, 1 << 20, source.number(8),
        )[how - 244]  # fmt: skip

    def leaf(self) -> int:
        """An L1 entry."""
        return (self.frame() << 12 | self.source.pick(LEAF_FLAGS)) & MASK64

    def upper(self) -> int:
        """An L2, L3 or L4 entry."""
        return (self.frame() << 12 | self.source.pick(UPPER_FLAGS)) & MASK64

    def entry(self) -> int:
        """Any page-table entry."""
        how = self.source.u8()
        if how < 120:
            return self.leaf()
        if how < 240:
            return self.upper()
        return self.source.number(8)

    def slot(self) -> int:
        """The number of an entry in a table: low ones, those that matter, any."""
        how = self.source.u8()
        if how < 128:
            return how & 15
        if how < 192:
            return (256, 260, 271, 272, 511, 510, 0, 255)[how & 7]
        return how * 2 + 1

    def page(self) -> int:
        """Address of one of the guest's play pages."""
        return self.guest.page(self.source.below(PLAY_PAGES))

    def va(self) -> int:
        """An address: most often one that can be written."""
        source, guest = self.source, self.guest
        how = source.u8()
        if how < 96:
            return guest.page(how % PLAY_PAGES)
        if how < 160:
            return guest.page(how % PLAY_PAGES) + EDGES[source.u8() % len(EDGES)]
        if how < 176:
            return guest.arguments + 4096 - (how & 15) * 4
        if how < 192:
            return source.number(2) << 12 | EDGES[how % len(EDGES)]
        if how < 240:
            chosen = ADDRESSES if guest.width == 64 else ADDRESSES_32
            return chosen[how % len(chosen)]
        return source.number(8)

    def count(self) -> int:
        """How many."""
        return self.source.pick(COUNTS)

    def domid(self) -> int:
        """A domain's number."""
        how = self.source.u8()
        if how < 96:
            return self.world.guests[how & 1].domain.domid
        if how < 112:
            return self.world.victim.domain.domid
        if how < 240:
            return DOMIDS[how % len(DOMIDS)]
        return self.source.number(2)

    def ref(self) -> int:
        """A grant reference."""
        how = self.source.u8()
        if how < 192:
            return FIRST_GRANT + how % 16
        if how < 224:
            return how & 7
        return (511, 512, 1023, 64 * 512, MASK32, 0x7FFF_FFFF, 1 << 16, 200)[how & 7]

    def handle(self) -> int:
        """A grant handle."""
        how = self.source.u8()
        return how % 12 if how < 224 else (MASK32, 1 << 16, 255, 4096)[how & 3]

    def port(self) -> int:
        """An event channel."""
        how = self.source.u8()
        return how % 24 if how < 224 else (4095, 4096, 0x1_0000, MASK32, 131072, 63, 64, 511)[how & 7]

    def vcpu(self) -> int:
        """A vCPU's number."""
        how = self.source.u8()
        return how & 1 if how < 240 else (2, 31, 32, 64, MASK32)[how % 5]

    def time(self) -> int:
        """A moment or a period in ns."""
        how = self.source.u8()
        chosen = TIMES[how % len(TIMES)]
        return (chosen + (self.world.machine.clock.now() if how & 128 else 0)) & MASK64

    def selector(self) -> int:
        """A segment selector."""
        how = self.source.u8()
        chosen = (0, 3, 0xE023, 0xE02B, 0xE033, 0xE030, 0xE02B, 0xE033, 8, 0x0B, 0x13, 0xC, 0xF, 0x17, 0xFFFF)
        return chosen[how % len(chosen)] if how < 240 else self.source.number(2)

    def descriptor(self) -> int:
        """A segment descriptor."""
        how = self.source.u8()
        chosen = (
            0x00CF_9B00_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x0000_8900_0000_0067,
            0x00CF_9200_0000_FFFF, 0x0000_EC00_E033_0000, 0x0000_8C00_0008_1234, 0, 0x008F_9E00_0000_FFFF,
        )  # fmt: skip
        return chosen[how % len(chosen)] if how < 224 else self.source.number(8)

    def word(self) -> int:
        """A 64-bit number of no particular kind."""
        how = self.source.u8() % 10
        if how == 0:
            return self.frame()
        if how == 1:
            return self.va()
        if how == 2:
            return self.count()
        if how == 3:
            return self.entry()
        if how == 4:
            return self.source.number(8)
        return self.source.u8()
