# SPDX-License-Identifier: GPL-2.0-only
"""The stage of the hypercall and emulator fuzzers: one machine, two attackers, one victim.

The attackers make hypercalls as their kernels would: registers are set in the state block and the dispatcher
is told that SYSCALL was executed, so all of the way from exit to re-entry is walked, but no guest code runs.
The victim does nothing. It has granted one page read-only and one writable to the first attacker and opened a
port; all else that it owns must stay as it was, and nobody may come to own a copy of its secret.
"""

import struct
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fuzz.target import Finding, arm
from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.numbers import Evtchn, Hypercall
from pyhv.abi.structs import EvtchnAllocUnbound
from pyhv.address import MASK32, Va
from pyhv.cpu import vmcb as v
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import GuestCrash, XenError
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.machine import Machine, MachineConfig
from pyhv.testing.guest_machine import image_of
from pyhv.traps.dispatch import Dispatcher

PAGES = 1024
PLAY_PAGES = 32
"""Pages of a guest's own that the input may do anything with."""
SPARE_FRAMES = 96
"""Frames of the machine that nobody owns at first."""
GRANTED_READ, GRANTED_WRITE, FIRST_GRANT = 8, 9, 8
_CODE_PAGE, _HANDLER_PAGE, _STACK_PAGE = 28, 30, 31
_ARGUMENT_PAGE = 26
_TURN_NS = 20_000
_MOST_TURNS = 40
_REGISTERS = {64: (v.RDI, v.RSI, v.RDX, v.R10, v.R8), 32: (v.RBX, v.RCX, v.RDX, v.RSI, v.RDI)}
"""Where each width has its arguments."""
FLAT_RING1_CS, FLAT_RING1_DS = 0xE019, 0xE021
_SECRET = 0x5EC2E7_0DD5_CA7A_06

SOURCE = """
{width}
.include "xen.inc"
.include "{kernel}.inc"
.text
_start:
    kernel_entry
    succeed
.bss
.balign PAGE_SIZE
play: .zero 32 * PAGE_SIZE
"""


@lru_cache(maxsize=4)
def guest_image(width: int) -> tuple[KernelImage, int]:
    """The attackers' kernel and where its play pages are."""
    wide = width == 64
    source = SOURCE.format(width="" if wide else ".width 32", kernel="kernel" if wide else "kernel32")
    image = load_image(image_of(source), "attacker")
    return image, next(symbol.va for symbol in image.symbols if symbol.name == "play")


class Sink:
    """A console that counts."""

    def __init__(self) -> None:
        self.length = 0

    def output(self, data: bytes) -> None:
        """Bytes that the guest wrote."""
        self.length += len(data)


class Guest:
    """One domain and what an attacker in it would know."""

    def __init__(self, machine: Machine, width: int, vcpus: int) -> None:
        image, self.play = guest_image(width)
        self.machine = machine
        self.sink = Sink()
        self.width = width
        self.domain: Domain = machine.create(
            image, DomainConfig("attacker", PAGES, vcpus=vcpus), console=self.sink
        )
        self.dispatcher: Dispatcher = machine.residents[self.domain.domid].dispatcher
        self.dispatcher.load(self.domain.vcpus[0])
        self.cpu = self.dispatcher.cpu
        self.q = self.cpu.vmcb.q
        memory = self.domain.memory
        self.frames = [memory.for_read(self.page(n)) >> 12 for n in range(PLAY_PAGES)]
        self.first_mfn = int(machine.frames.owned_by(self.domain.domid)[1])
        self.tables = self._initial_tables()
        self.taken: list[int] = []
        """Frames that it was given later."""
        self.windows: list[int] = []
        """Where it has asked for grants to be mapped."""
        self.rings = machine.dom0.frames(self.domain.domid)
        self._handlers()

    @property
    def vcpu(self) -> Vcpu:
        """The vCPU on the engine."""
        return self.cpu.vcpu

    def page(self, number: int) -> int:
        """Address of a play page."""
        return self.play + 4096 * number

    @property
    def arguments(self) -> int:
        """Address of the two pages in which structures are put."""
        return self.page(_ARGUMENT_PAGE)

    @property
    def code(self) -> int:
        """Address of the pages from which the emulator target runs code."""
        return self.page(_CODE_PAGE)

    @property
    def stack(self) -> int:
        """Address in the middle of the stack page."""
        return self.page(_STACK_PAGE) + 2048

    def handler(self, number: int) -> int:
        """Address of the handler of a vector."""
        return self.page(_HANDLER_PAGE) + 16 * number

    def _initial_tables(self) -> list[int]:
        """The first table, one of each lower level, and last the L1 that maps the play pages."""
        frames, domain = self.machine.frames, self.domain
        found = [int(domain.vcpus[0].paging.kernel_l4)]
        own = frames.owned_by(domain.domid)
        for level in range(frames.type[found[0]] - 1, 1, -1):
            tables = own[(frames.type_np[own] == level) & (frames.type_count_np[own] > 0)]
            found.append(int(tables[0]))
        leaf = domain.memory.leaf_entry(Va(self.play))
        assert leaf is not None
        return [*found, leaf >> 12]

    def _handlers(self) -> None:
        """A handler for everything; each spins."""
        self.domain.memory.write(self.page(_HANDLER_PAGE), b"\xeb\xfe".ljust(16, b"\xcc") * 256)
        narrow = 0 if self.width == 64 else FLAT_RING1_CS
        for vcpu in self.domain.vcpus:
            vcpu.traps.handlers = [
                (self.handler(n), 4 if n in (2, 14) else 3 if n == 3 else 0) for n in range(256)
            ]
            vcpu.traps.selectors = [narrow] * 256
            for number, callback in enumerate(
                (
                    vcpu.callbacks.event,
                    vcpu.callbacks.syscall,
                    vcpu.callbacks.failsafe,
                    vcpu.callbacks.sysenter,
                )
            ):
                callback.address, callback.selector = self.handler(248 + number), narrow
            vcpu.kernel_stack.sp = self.stack + 1024
            vcpu.kernel_stack.ss = 0xE02B if self.width == 64 else FLAT_RING1_DS

    def put(self, data: bytes, offset: int = 0) -> int:
        """Store into the argument pages as the guest would; their address, even if it could not."""
        self.poke(self.arguments + offset, data)
        return self.arguments + offset

    def poke(self, va: int, data: bytes) -> None:
        """The guest stores bytes, if its page tables let it."""
        if not self.domain.alive:
            return
        try:
            self.domain.memory.write(va, data)
        except XenError:
            return

    @property
    def alive(self) -> bool:
        """Whether it can still call."""
        return self.domain.alive


class World:
    """The machine with its guests. `call` performs a hypercall, `check` looks for damage."""

    def __init__(self, width: int = 64, vcpus: int = 2) -> None:
        self.machine = Machine(MachineConfig(3 * PAGES + SPARE_FRAMES, virtual_time=True))
        self.free = self.machine.frames.free_count
        self.width, self.vcpus = width, vcpus
        self.guests = [Guest(self.machine, width, vcpus) for _ in range(2)]
        self.victim = Guest(self.machine, 64, 1)
        self.exits = 0
        """Exits of the attackers, those by `exit` and those of code."""
        self.deaths = 0
        self.retired = 0
        self._prepare_victim()

    # -- the victim ----------------------------------------------------------------------------------------

    def _prepare_victim(self) -> None:
        victim, ram = self.victim, self.machine.ram
        for frame in victim.frames[:24]:
            ram.writable.tables[frame] = _SECRET
        table = victim.domain.grants.frames[0] << 12
        for ref, frame, flags in (
            (GRANTED_READ, victim.frames[24], 5),
            (GRANTED_WRITE, victim.frames[25], 1),
        ):
            ram.writable.tables[frame] = 0
            at = table + 8 * ref
            entry = struct.pack("<HHI", flags, self.guests[0].domain.domid, frame)
            ram.writable.raw[at : at + 8] = entry
        request = EvtchnAllocUnbound(dom=DOMID_SELF, remote_dom=self.guests[0].domain.domid, port=0)
        at = victim.put(request.pack())
        self.call(victim, Hypercall.EVENT_CHANNEL_OP, (Evtchn.ALLOC_UNBOUND, at, 0, 0, 0))
        self._canary = self._victims_own()
        self._canary_value = ram.tables[self._canary].copy()

    def _victims_own(self) -> npt.NDArray[np.int64]:
        """The victim's frames but those that the hypervisor or a borrower may write."""
        domain, machine = self.victim.domain, self.machine
        excepted = [domain.shared_info.mfn, *domain.grants.frames, *self.victim.rings, self.victim.frames[25]]
        return np.setdiff1d(machine.frames.owned_by(domain.domid), np.array(excepted, dtype=np.int64))

    # -- performing ----------------------------------------------------------------------------------------

    def call(self, guest: Guest, number: int, arguments: tuple[int, ...]) -> int:
        """A hypercall of a guest, continued until it is done or the guest has died; RAX."""
        if not guest.domain.alive:
            return 0
        q, rip = guest.q, guest.code
        q[v.RIP] = rip
        if guest.vcpu.in_kernel:
            q[v.RSP] = guest.stack
        enter = self._syscall if guest.width == 64 else self._interrupt
        for register, value in zip(_REGISTERS[guest.width], arguments, strict=False):
            q[register] = value if guest.width == 64 else value & MASK32
        for _ in range(_MOST_TURNS):
            q[v.RAX] = number
            enter(guest)
            if not guest.domain.alive:
                return 0
            if q[v.RIP] != rip:
                break
        return q[v.RAX]

    def _syscall(self, guest: Guest) -> None:
        self.exit(guest, lambda: guest.dispatcher.syscall(2))

    def _interrupt(self, guest: Guest) -> None:
        """INT 0x82, past which RIP is by then."""
        guest.q[v.RIP] += 2
        guest.cpu.vmcb.d[v.EXCEPTION_IS_INT] = 1
        self.exit(guest, lambda: guest.dispatcher.exception(0x82))

    def exit(self, guest: Guest, handle: Callable[[], None]) -> None:
        """Something makes the guest leave its code, in a turn of its own."""
        arm()
        call, clock = guest.dispatcher.call, self.machine.clock
        call.reschedule = False
        self.exits += 1
        clock.begin(guest.domain.engine, clock.now() + _TURN_NS)
        try:
            handle()
        finally:
            clock.end()
        if call.reschedule:
            self._left_processor(guest)

    def _left_processor(self, guest: Guest) -> None:
        """What the machine's loop would do: bury the dead, and let sleepers wake at once."""
        self.pass_time(0)
        if not guest.domain.alive:
            return
        for vcpu in guest.domain.vcpus:
            if vcpu.blocked:
                self.machine.services.wake(vcpu)
        guest.dispatcher.enter()

    def run(self, guest: Guest, ns: int) -> None:
        """Let a guest's code run for a while, as a turn of the machine's loop."""
        arm()
        machine, domain = self.machine, guest.domain
        before = sum(guest.dispatcher.counts)
        guest.dispatcher.call.reschedule = False
        machine.clock.begin(domain.engine, machine.clock.now() + ns)
        try:
            domain.engine.run()
        except GuestCrash as fatal:
            machine.services.crash(domain, fatal.why)
        finally:
            machine.clock.end()
        self.exits += sum(guest.dispatcher.counts) - before
        if guest.dispatcher.call.reschedule or not domain.alive:
            self._left_processor(guest)

    def pass_time(self, ns: int) -> None:
        """Let machine time pass: timers fire, the dead are buried, the suspended are sent on."""
        self.machine.clock.advance_to(self.machine.clock.now() + ns)
        self.machine.settle()
        for guest in self.guests:
            if guest.domain.suspended:
                self.machine.resume(guest.domain, cancelled=True)

    def switch_vcpu(self, guest: Guest, number: int) -> None:
        """Put another vCPU of a guest on its engine, if there is one that may run."""
        vcpu = guest.domain.vcpus[number % len(guest.domain.vcpus)]
        if vcpu.online and guest.domain.alive:
            guest.dispatcher.load(vcpu)
            guest.dispatcher.enter()

    def replace_the_dead(self) -> bool:
        """New attackers for dead ones; False if the machine has no room for them, and so is used up."""
        for index, guest in enumerate(self.guests):
            if guest.domain.alive:
                continue
            self.deaths += 1
            self.retired += sum(guest.dispatcher.hypercalls) + guest.dispatcher.unknown_hypercalls
            if self.machine.frames.free_count < PAGES + SPARE_FRAMES:
                return False
            self.guests[index] = Guest(self.machine, self.width, self.vcpus)
        return True

    @property
    def hypercalls(self) -> int:
        """Hypercalls performed so far, those inside multicalls included."""
        living = (*self.guests, self.victim)
        return self.retired + sum(
            sum(guest.dispatcher.hypercalls) + guest.dispatcher.unknown_hypercalls for guest in living
        )

    # -- checking ------------------------------------------------------------------------------------------

    def check(self, *, thoroughly: bool = False) -> None:
        """Raise `Finding` if memory is not sound, the victim has noticed anything, or a quota is exceeded."""
        damage = self.machine.audit()
        if damage:
            raise Finding("audit", damage[0])
        if not self.victim.domain.alive:
            raise Finding("victim", f"the victim has died: {self.victim.domain.life.cause}")
        tables = self.machine.ram.tables
        changed = tables[self._canary] != self._canary_value
        if changed.any():
            frame = int(self._canary[np.flatnonzero(changed.any(axis=1))[0]])
            raise Finding("victim", f"the victim's {self.machine.frames.describe(frame)} has changed")
        if thoroughly:
            for guest in self.guests:
                owned = self.machine.frames.owned_by(guest.domain.domid)
                if (tables[owned] == np.uint64(_SECRET)).any():
                    raise Finding("secret", f"d{guest.domain.domid} has the victim's secret")
        for guest in self.guests:
            self._check_quotas(guest.domain)

    def _check_quotas(self, domain: Domain) -> None:
        for what, size, limit in (
            ("frames", domain.tot_pages, domain.max_pages + 512),
            ("cached leaves", len(domain.memory.leaves), 1 << 14),
            ("pages to flush", len(domain.tables.flush_pages), 32),
            ("mapped grants", len(domain.maptrack), domain.maptrack.limit),
            ("grants in use", sum(1 for _ in domain.grants.active_mappings()), 64 * 512),
            ("decoded selectors", max(len(vcpu.descriptors.segments) for vcpu in domain.vcpus), 1 << 17),
            ("decoded pairs", max(len(vcpu.descriptors.return_segments) for vcpu in domain.vcpus), 1 << 12),
        ):
            if size > limit:
                raise Finding("quota", f"d{domain.domid} has {size} {what}")

    def finish(self) -> None:
        """Everybody dies; nothing may be left."""
        self.check(thoroughly=True)
        for guest in (*self.guests, self.victim):
            guest.domain.life.shut_down(0)
        self.machine.settle()
        damage = self.machine.audit()
        if damage:
            raise Finding("audit after death", damage[0])
        if self.machine.frames.free_count != self.free:
            lost = self.free - self.machine.frames.free_count
            raise Finding("leak", f"{lost} frames are lost when all domains have died")

    def close(self) -> None:
        """Free the engines."""
        self.machine.close()
