# SPDX-License-Identifier: GPL-2.0-only
"""Breakpoints: makes DR0-DR3 and DR7 of the vCPU on a domain's engine fire (Intel SDM volume 3, chapter 18).

The emulator ignores its debug registers. An instruction that may meet a breakpoint is executed as a *step*:
TF in `hflags`, where the guest cannot see it, makes it end in an exit, and before and after it everything
that hardware looks at is at hand:

    before   RIP is an instruction breakpoint, and RF is clear         #DB, a fault
    after    the instruction touched a watched address or port, or     #DB, a trap
             the guest's own TF was set when it began

An engine comes by itself where one is due (`cpu/debugunit.py`), with the instruction yet to be done: at the
address of a breakpoint, at an access to watched memory, at IRET, as that may set RF for the next one. In
between the guest runs, at full speed on a tuned engine. Port breakpoints are the exception: while one is
enabled, every instruction is a step.

An engine without a debug unit, on hosts for which there is no native code, takes steps alone, a hundred times
slower, for as long as the vCPU has enabled breakpoints. Data breakpoints need a hook there that sees every
load and store (`Engine.watch_memory`). Hooks, those of the unit of an engine that is not tuned among them,
tell *machine* addresses, while breakpoints name linear ones, so a hit counts only if the instruction's
operands reach the watched linear address.

All this is per vCPU, and costs one without breakpoints nothing: `GuestCpu.rearrange`, which is looked at in
every exit anyhow, stays set while there are some.

In the same way a vCPU is led through the instructions before one whose bytes cannot be fetched
(`pagefault.py`): `DebugState.approach`.

Whoever runs the machine may take steps of his own (`begin_step`) and have accesses to data observed. What
comes of that is *claimed* before it is an exit: the guest does not see it, nobody counts it, and it takes no
time.

What the hypervisor reads and writes for a guest (hypercall arguments, frames, page-table stores) is not seen
by breakpoints; it is not with Xen either.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar, Final, NamedTuple

from pyhv.abi.x86 import CR4_DE, FLAG_RF, FLAG_TF, Vector
from pyhv.address import MASK64, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from pyhv.cpu import decode
from pyhv.cpu import vmcb as v
from pyhv.cpu.debugunit import MET_BREAKPOINT, MET_OBSERVED, DataAccess, Range, of_one_operand
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import GuestCrash
from pyhv.mmu.memory import walk
from pyhv.traps.guestcpu import GuestCpu
from pyhv.traps.privileged import fetch

DR6_BS: Final = 1 << 14
_INSTRUCTION, _WRITE, _PORT, _ACCESS = range(4)
_NOWHERE: Final = (0, 0)
_LENGTHS: Final = (1, 2, 8, 4)
_LONGEST_ACCESS: Final = 16


class Breakpoint(NamedTuple):
    """An enabled data or port breakpoint: `bit` is its bit in DR6."""

    bit: int
    start: int
    length: int
    writes_only: bool = False


class Observed(NamedTuple):
    """Data whose reads or writes whoever runs the machine wants to see: linear addresses."""

    start: int
    length: int
    reads: bool
    writes: bool


def data_breakpoints(vcpu: Vcpu) -> list[Breakpoint]:
    """The vCPU's enabled data breakpoints; low address bits do not count, as on hardware."""
    return [
        Breakpoint(1 << n, vcpu.debug.registers[n] & -length, length, kind == _WRITE)
        for n, kind, length in _enabled(vcpu)
        if kind in (_WRITE, _ACCESS)
    ]


def instruction_breakpoints(vcpu: Vcpu) -> list[tuple[int, int]]:
    """The vCPU's enabled instruction breakpoints: bits in DR6, linear addresses."""
    return [(1 << n, vcpu.debug.registers[n]) for n, kind, _ in _enabled(vcpu) if kind == _INSTRUCTION]


def _enabled(vcpu: Vcpu) -> list[tuple[int, int, int]]:
    """(number, type, length) of the breakpoints that are enabled, locally or globally."""
    control = vcpu.debug.registers[7]
    if not control & 0xFF:
        return []
    return [
        (n, control >> 16 + 4 * n & 3, _LENGTHS[control >> 18 + 4 * n & 3])
        for n in range(4)
        if control >> 2 * n & 3
    ]


class Breakpoints:
    """The breakpoints of whichever vCPU is on the engine."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("_cpu", "_unit", "_tells_linear"), "its domain's"),
        **dict.fromkeys(("_instructions", "_data", "_ports"), "follow from the vCPU's debug registers"),
        **dict.fromkeys(
            ("_touches", "_hits", "_guest_steps", "_before", "_began"), "of a step, which begins anew"
        ),
        **dict.fromkeys(
            (
                "_stops",
                "_arrived",
                "_told",
                "_observed",
                "_met",
                "_due",
                "_seen",
                "_claims",
                "_stepped",
                "_recording",
            ),
            "whoever runs the machine",
        ),
    }

    def __init__(self, cpu: GuestCpu) -> None:
        self._cpu = cpu
        self._unit = cpu.engine.debug_unit
        self._tells_linear = self._unit is not None and self._unit.tells_linear
        self._instructions: list[tuple[int, int]] = []
        self._data: list[Breakpoint] = []
        self._ports: list[Breakpoint] = []
        self._touches: list[DataAccess] = []
        """Of the instruction in execution; machine addresses, but linear ones from a debug unit."""
        self._hits = 0
        """DR6 bits of port breakpoints that the instruction in execution has met."""
        self._guest_steps = False
        """Whether the guest's own TF was set when the instruction in execution began."""
        self._before: list[int] = []
        """RAX..R15, RIP as the instruction in execution began."""
        self._began = 0
        """Its linear address."""
        self._stops: frozenset[int] = frozenset()
        """Linear addresses of instructions before which whoever runs the machine wants to be told."""
        self._arrived: Callable[[int], None] = lambda _address: None
        self._told: int | None = None
        """Which of them it was told of, as long as the instruction there is not done."""

        self._observed: tuple[Observed, ...] = ()
        self._met: Callable[[], None] = lambda: None
        """Called when one of them is about to be accessed, or has been."""
        self._due: int | None = None
        """Linear address of an instruction that is about to access one of them."""
        self._seen: list[Observed] = []
        """Those that were accessed, until somebody takes note."""
        self._claims = self._stepped = self._recording = False
        """Whether the end of the instruction in execution is no exit; whether it has come; whether what it
        accesses is written down."""

    def stop_at(self, addresses: Collection[int], arrived: Callable[[int], None]) -> None:
        """Call `arrived` before any vCPU executes an instruction at one of these linear addresses.

        The guest does not see it, but it costs time: two exits each.
        """
        self._stops, self._arrived = frozenset(addresses), arrived
        self._told = self._cpu.linear_rip()
        self._cpu.rearrange = True

    @property
    def stepping(self) -> bool:
        """Whether the instruction in execution is a step."""
        return self._cpu.stepping

    # -- before an instruction ---------------------------------------------------------------------------

    def loaded(self, *, same_turn: bool = False) -> None:
        """A vCPU's registers are on the engine, maybe for the rest of a turn that it has begun elsewhere."""
        cpu = self._cpu
        if not same_turn:
            cpu.vcpu.debug.approach = _NOWHERE
        if (
            cpu.vcpu.debug.approach != _NOWHERE
            or cpu.vcpu.debug.registers[7] & 0xFF
            or cpu.stepping
            or cpu.vmcb.d[v.HFLAGS] & v.HF_TF  # taken off in a step
            or (self._unit is not None and self._unit.watching)
            or self._stops
            or (self._observed and not self._tells_linear)
        ):
            cpu.rearrange = True

    def entering(self) -> None:
        """The engine is about to be started: what cannot be changed while it runs."""
        engine = self._cpu.engine
        if self._unit is not None:
            vcpus = self._cpu.domain.vcpus
            self._unit.settle(
                self._stops | {address for vcpu in vcpus for _, address in instruction_breakpoints(vcpu)},
                data=self._watch_wanted,
            )
            return
        wanted = self._watch_wanted
        if wanted != engine.watches_memory:
            engine.watch_memory(self._touched if wanted else None)

    @property
    def _watch_wanted(self) -> bool:
        return bool(self._observed) or any(data_breakpoints(vcpu) for vcpu in self._cpu.domain.vcpus)

    def resume(self) -> None:
        """The last thing before guest code runs on: instruction breakpoints, and steps. GuestCrash."""
        cpu = self._cpu
        vcpu, q, d = cpu.vcpu, cpu.vmcb.q, cpu.vmcb.d
        d[v.HFLAGS] &= ~(v.HF_TF | v.HF_RF) & v.MINUS_ONE
        self._touches.clear()
        self._hits = 0
        self._read_registers()
        if self.wait_for_entry:
            cpu.engine.stop()
        hits = self._stops_here()
        if hits and not q[v.EFLAGS] & FLAG_RF and not d[v.HFLAGS] & v.HF_INHIBIT:
            vcpu.debug.registers[6] |= hits
            cpu.raise_exception(Vector.DB)
            if self._stops_here():
                raise GuestCrash("a breakpoint at the first instruction of the debug exception's handler")
        self._look_for_stops()
        step = self._step_due
        if self._unit is not None:
            self._watch(record=step)
        cpu.stepping = step
        if not step:
            hooked = cpu.engine.watches_memory and not self._watch_wanted
            follows = bool(self._observed) and not self._tells_linear
            cpu.rearrange = (
                cpu.has_breakpoints or hooked or follows or (self._unit is None and bool(self._stops))
            )
            return
        cpu.rearrange = True
        self._began = cpu.linear_rip()
        d[v.HFLAGS] |= v.HF_TF
        if self._unit is not None and self._began in self._unit.known:
            d[v.HFLAGS] |= v.HF_RF  # past the breakpoint there
        self._guest_steps = bool(q[v.EFLAGS] & FLAG_TF)
        self._before = q[0:16].tolist()
        self._before.append(q[v.RIP])

    def _look_for_stops(self) -> None:
        at = self._cpu.linear_rip()
        if at not in self._stops:
            self._told = None
        elif at != self._told:
            self._told = at
            self._arrived(at)

    def _watch(self, *, record: bool) -> None:
        """Have the unit watch what the vCPU's registers and whoever runs the machine want."""
        unit = self._unit
        assert unit is not None
        places = ((one.start, one.length, not one.reads) for one in self._observed)
        unit.observed = tuple(found for place in places for found in self._ranges(*place))
        watched = (self._ranges(one.start, one.length, one.writes_only) for one in self._data)
        unit.watch(
            tuple(found for ranges in watched for found in ranges),
            iret=bool(self._instructions),
            record=record,
        )

    def _ranges(self, start: int, length: int, writes_only: bool) -> Iterator[Range]:
        """What the unit has to watch. Machine addresses hold until an exit: no mapping changes without."""
        offset = start & PAGE_MASK
        pages: list[int | None] = [start - offset]
        if not self._tells_linear:
            pages = [self._machine_page(start)]
            if offset < _LONGEST_ACCESS:  # an access may begin in the page before
                before = self._machine_page(start - PAGE_SIZE & MASK64)
                pages.append(None if before is None else before + PAGE_SIZE)
        for page in pages:
            if page is not None:
                yield Range(page + offset, page + offset + length - 1, writes_only)

    def _read_registers(self) -> None:
        """What the vCPU's debug registers enable."""
        vcpu = self._cpu.vcpu
        self._cpu.has_breakpoints = bool(vcpu.debug.registers[7] & 0xFF)
        self._instructions = instruction_breakpoints(vcpu)
        self._data = data_breakpoints(vcpu)
        self._ports = []
        if vcpu.cr4 & CR4_DE:
            self._ports = [
                Breakpoint(1 << n, vcpu.debug.registers[n], size)
                for n, kind, size in _enabled(vcpu)
                if kind == _PORT
            ]

    @property
    def wait_for_entry(self) -> bool:
        """Whether the engine lacks something that `entering` will give it."""
        if self._unit is None:
            return bool(self._data) and not self._cpu.engine.watches_memory
        wanted = [*(at for _, at in self._instructions), *self._stops]
        return not self._unit.is_settled(wanted, data=bool(self._data))

    @property
    def _step_due(self) -> bool:
        """Whether the next instruction must be a step."""
        cpu, unit = self._cpu, self._unit
        if self._approaches():
            return True
        if unit is None:
            return cpu.has_breakpoints or bool(self._stops)
        if self._ports:
            return True
        at = cpu.linear_rip()
        if at == cpu.vcpu.debug.due or at in unit.known:
            return True
        cpu.vcpu.debug.due = None
        flags = cpu.vmcb.q[v.EFLAGS]
        if flags & FLAG_TF and cpu.has_breakpoints:
            return True  # it traps anyhow, and may be the middle of a string instruction
        return bool(self._instructions) and bool(flags & FLAG_RF)

    def _approaches(self) -> bool:
        """Whether the guest is still on its way through `DebugState.approach`; it never turns back."""
        cpu, debug = self._cpu, self._cpu.vcpu.debug
        if debug.approach == _NOWHERE:
            return False
        at, (start, stop) = cpu.linear_rip(), debug.approach
        debug.approach = (at, stop) if start <= at < stop else _NOWHERE
        return debug.approach != _NOWHERE

    def _stops_here(self) -> int:
        """DR6 bits of the instruction breakpoints at RIP."""
        at = self._cpu.linear_rip()
        hits = 0
        for bit, address in self._instructions:
            if address == at:
                hits |= bit
        return hits

    # -- during an instruction ---------------------------------------------------------------------------

    def _touched(self, address: int, size: int, write: bool) -> None:
        """A load or store: remember it if its place in the page, or in the next, is a breakpoint's."""
        offset = address & PAGE_MASK
        for watch in self._data:
            at = watch.start & PAGE_MASK
            overlaps = offset < at + watch.length and at < offset + size
            if overlaps or at + PAGE_SIZE < offset + size:
                self._touches.append(DataAccess(address, size, write))
                return

    def port(self, number: int, size: int) -> None:
        """IN or OUT has been permitted."""
        for watch in self._ports:
            if number < watch.start + watch.length and watch.start < number + size:
                self._hits |= watch.bit

    # -- after an instruction ----------------------------------------------------------------------------

    def trap(self) -> int:
        """#DB has come up, a trap: the bits that it adds to the guest's DR6; 0: it is not the guest's."""
        cpu, unit = self._cpu, self._unit
        if unit is not None and self._has_come_by_itself():
            return 0
        debug = cpu.vcpu.debug
        if debug.swallow_step:
            debug.swallow_step = False
            return 0
        if debug.unstepped:  # the emulator traps before the first instruction after an iret
            debug.unstepped = False
            return 0
        if not cpu.stepping:
            return DR6_BS
        self._told = None
        hits = self._hits
        if unit is not None:
            debug.due = None
            self._touches = unit.accesses()
            self._look_at_observed()
        if self._touches:
            hits |= self._data_hits()
        if self._guest_steps:
            hits |= DR6_BS
        q = cpu.vmcb.q
        if cpu.has_breakpoints and q[v.RIP] == self._before[16]:
            found = decode.accesses(fetch(cpu, cpu.linear_rip()), self._bits)
            if found is not None and found.repeated:
                q[v.EFLAGS] |= FLAG_RF  # in the middle of a repeated string instruction
        return hits

    def _has_come_by_itself(self) -> bool:
        """Whether the engine stopped before an instruction, which `resume` will then look at."""
        unit = self._unit
        assert unit is not None
        cause = unit.cause()
        if not cause:
            return False
        cpu = self._cpu
        at = cpu.linear_rip()
        cpu.rearrange = True
        if cause != MET_BREAKPOINT:
            cpu.vcpu.debug.due = at
        elif at in self._stops or any(address == at for _, address in self._instructions):
            pass
        elif unit.arrived_for_nothing(at):
            cpu.engine.stop()  # so that it is forgotten
        return True

    # -- for whoever runs the machine --------------------------------------------------------------------

    @property
    def began(self) -> int:
        """Linear address of the instruction that was last done step by step, to see what it accesses."""
        return self._began

    @property
    def can_observe(self) -> bool:
        """Whether the engine meets accesses to data by itself."""
        return self._unit is not None

    def observe(self, wanted: Collection[Observed], met: Callable[[], None]) -> None:
        """Call `met` when code accesses one of these, at most `debugunit.RANGES`. Not while the engine runs.

        Either the access is about to be made, by the instruction at RIP, or `take_seen` has it.
        """
        self._observed, self._met = tuple(wanted), met
        self._due = None
        self._seen.clear()
        if self._unit is None:
            return
        self.entering()
        self._read_registers()
        self._watch(record=False)
        if not self._tells_linear:
            self._cpu.rearrange = True  # what is mapped where may change in each exit

    @property
    def access_due(self) -> bool:
        """Whether the instruction at RIP is about to access what is observed: it needs a step."""
        return self._due is not None and self._due == self._cpu.linear_rip()

    def take_seen(self) -> list[Observed]:
        """What was accessed since this was asked last."""
        seen, self._seen = self._seen, []
        return seen

    def begin_step(self) -> None:
        """The engine is about to execute one instruction: have it come back behind it, with nobody told.

        If it comes before the instruction is done, since that accesses what is observed, another attempt is
        needed, which does it.
        """
        cpu = self._cpu
        self._stepped = False
        self._claims = not cpu.stepping and not cpu.vmcb.q[v.EFLAGS] & FLAG_TF
        cpu.vmcb.d[v.HFLAGS] |= v.HF_TF
        if self._claims and self._unit is not None and self.access_due:
            self._began = cpu.linear_rip()
            self._before = [*cpu.vmcb.q[0:16].tolist(), cpu.vmcb.q[v.RIP]]
            self._watch(record=True)
            self._recording = True

    def step_unaided(self) -> None:
        """After `begin_step`: the instruction is the last one of its block, and the engine comes back
        anyway."""
        self._claims = False
        if not self._cpu.stepping:
            self._cpu.vmcb.d[v.HFLAGS] &= ~v.HF_TF & v.MINUS_ONE

    def end_step(self, *, done: bool = False) -> bool:
        """It has come back; whether the instruction is done, as far as that was to be seen here, or
        `done`."""
        cpu, unit = self._cpu, self._unit
        done = done or self._stepped
        self._claims = False
        if done and self._recording and unit is not None:
            self._touches = unit.accesses()
            self._look_at_observed()
        if not cpu.stepping:
            cpu.vmcb.d[v.HFLAGS] &= ~v.HF_TF & v.MINUS_ONE
            if self._observed and unit is not None:
                self._watch(record=False)
        self._recording = False
        if done:
            self._due = None
        return done

    def claim(self) -> bool:
        """#DB has come up: whether that is due to whoever runs the machine alone, and so no exit."""
        unit, cpu = self._unit, self._cpu
        cause = 0 if unit is None else unit.next_cause
        if unit is not None and cause == MET_OBSERVED:
            unit.cause()
            self._due = cpu.linear_rip()
            self._met()
            return True
        if not self._claims or cause or cpu.vmcb.d[v.EXCEPTION_IS_INT]:
            return False
        self._claims, self._stepped = False, True
        cpu.engine.come_back()
        return True

    def _look_at_observed(self) -> None:
        """The instruction that began last has touched memory: was any of it observed?"""
        found = decode.accesses(fetch(self._cpu, self._began), self._bits) if self._observed else None
        told = of_one_operand(self._touches) if found is None and self._tells_linear else self._touches
        for one in self._observed:
            place = Breakpoint(0, one.start, one.length)
            touches = [touch for touch in told if (one.writes if touch.write else one.reads)]
            if any(self._concerns(touch, place) for touch in touches) and self._reaches(place, found):
                self._seen.append(one)
        if self._seen:
            self._met()

    @property
    def _bits(self) -> int:
        return 64 if self._cpu.vmcb.d[v.HFLAGS] & v.HF_CS64 else 32

    def _data_hits(self) -> int:
        """DR6 bits of the data breakpoints that the instruction has met."""
        hits = 0
        found = decode.accesses(fetch(self._cpu, self._began), self._bits)
        told = self._touches
        if found is None and self._tells_linear:
            told = of_one_operand(told)
        for watch in self._data:
            touches = [touch for touch in told if touch.write or not watch.writes_only]
            if any(self._concerns(touch, watch) for touch in touches) and self._reaches(watch, found):
                hits |= watch.bit
        return hits

    def _concerns(self, touch: DataAccess, watch: Breakpoint) -> bool:
        """Whether a load or store reached the memory that is now at the watched address.

        A hook tells machine addresses, and of an access that crosses into another page only the first one.
        """
        if self._tells_linear:
            end = watch.start + watch.length
            return touch.address < end and watch.start < touch.address + touch.size
        page, offset = touch.address & ~PAGE_MASK, touch.address & PAGE_MASK
        at = watch.start & PAGE_MASK
        overlaps = offset < at + watch.length and at < offset + touch.size
        if overlaps and self._machine_page(watch.start) == page:
            return True
        crosses = at + PAGE_SIZE < offset + touch.size
        return crosses and self._machine_page(watch.start - PAGE_SIZE & MASK64) == page

    def _machine_page(self, va: int) -> int | None:
        """The machine address of the page that the guest's present tables map at an address."""
        cpu = self._cpu
        found = walk(cpu.domain.ram, cpu.vmcb.q[v.CR + 3] >> PAGE_SHIFT, va)
        return None if found is None else found.address & ~PAGE_MASK

    def _reaches(self, watch: Breakpoint, found: decode.Accesses | None) -> bool:
        """Whether the instruction means the watched linear address, not another view of the same memory."""
        if found is None:
            return True
        before = self._before
        q = self._cpu.vmcb.q
        words = before + q[17:200].tolist()
        spans = [
            (decode.linear_address(operand, found.length, words, found.address_mask), size)
            for operand, size in found.operands
        ]
        if found.stack:
            low, high = sorted((before[v.RSP], q[v.RSP]))
            spans.append((low, high - low))
        return any(start < watch.start + watch.length and watch.start < start + size for start, size in spans)
