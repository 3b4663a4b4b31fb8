# SPDX-License-Identifier: GPL-2.0-only
"""Small guests for tests: assemble a kernel, boot it on a machine with virtual time, and look at what it
said; or build it, leave it paused, and call hypercalls from Python as if it had.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from pyhv.abi.numbers import UVMF_INVLPG, Hypercall, Mmuext
from pyhv.address import MASK64, Va
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import XenError
from pyhv.guests.build import build
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.sched.base import Scheduler
from pyhv.testing.verbs import Result, Verbs
from pyhv.traps.dispatch import Dispatcher
from pyhv.traps.report import CrashReport
from pyhv.until import Outcome

PAGES: Final = 1024
TUNED: Final = True
"""Whether machines are tuned; `both_engines` in conftest.py runs tests with either."""
SECOND: Final = 1_000_000_000
UNMAPPED: Final = 0x7FFF_0000_0000
"""An address that no guest here has mapped."""

# What the 16 scratch pages of a paused guest are used for; tests may use 0 to 7.
_CODE, _HANDLERS, _FREE, _STACK, _KERNEL_STACK = 0x8000, 0xA000, 0xC000, 0xE000, 0xF800
_ARGUMENTS, _ARGUMENTS_SIZE = 0xB400, 0xC00

HEADER: Final = """
.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "paging.inc"
"""

START: Final = """
.text
_start:
    kernel_entry
"""


class Sink:
    """A console that remembers."""

    def __init__(self) -> None:
        self.data = b""

    def output(self, data: bytes) -> None:
        """Bytes that the guest wrote."""
        self.data += data

    @property
    def text(self) -> str:
        """All of it, as text."""
        return self.data.decode(errors="replace")


_images: dict[str, bytes] = {}


def image_of(source: str) -> bytes:
    """Build a kernel from source text (once per process)."""
    found = _images.get(source)
    if found is None:
        with TemporaryDirectory() as directory:
            path = Path(directory) / "guest.S"
            path.write_text(source)
            found = _images[source] = build(path)
    return found


@dataclass
class Run:
    """What came of a guest."""

    outcome: Outcome
    output: str
    domain: Domain
    dispatcher: Dispatcher
    report: CrashReport | None

    @property
    def passed(self) -> bool:
        """Whether it said SUCCESS and powered itself off."""
        return self.outcome is Outcome.ENDED and self.domain.life.reason == 0 and "SUCCESS\n" in self.output


@contextmanager
def machine(
    *, pages: int = PAGES, virtual_time: bool = True, scheduler: str | Scheduler = "credit"
) -> Iterator[Machine]:
    """A machine with room for `pages`, closed at the end."""
    made = Machine(MachineConfig(pages, scheduler=scheduler, virtual_time=virtual_time, tuned=TUNED))
    try:
        yield made
    finally:
        made.close()


def run(
    source: str,
    *,
    vcpus: int = 1,
    pages: int = PAGES,
    timeout_ns: int = 5 * SECOND,
    virtual_time: bool = True,
) -> Run:
    """Boot `source` and run it to its end."""
    with machine(pages=pages, virtual_time=virtual_time) as made:
        sink = Sink()
        image = load_image(image_of(source), "guest")
        domain = made.create(image, DomainConfig("guest", pages, vcpus=vcpus), console=sink)
        resident = made.residents[domain.domid]
        outcome = made.run(timeout_ns=timeout_ns)
        return Run(
            outcome,
            sink.data.decode("latin-1"),
            domain,
            resident.dispatcher,
            resident.report,
        )


def passes(body: str, *, vcpus: int = 1, timeout_ns: int = 5 * SECOND, prologue: str = "") -> Run:
    """Run `body` after the usual start (console, and traps if `prologue` says so); it must print SUCCESS."""
    done = run(HEADER + START + prologue + body, vcpus=vcpus, timeout_ns=timeout_ns)
    assert done.passed, (done.outcome, done.output, done.domain.life.cause)
    return done


TRAPS: Final = "    call traps_init\n"


class Paused(Verbs):
    """A built guest that has not run yet; hypercalls are performed from here, as from its kernel.

    `scratch` is the address of 16 pages of its own memory, mapped writable.
    """

    SOURCE = (
        HEADER
        + START
        + """
    succeed
.bss
.balign PAGE_SIZE
scratch: .zero 16 * PAGE_SIZE
"""
    )

    def __init__(self, made: Machine, source: str = SOURCE, *, vcpus: int = 1, pages: int = PAGES) -> None:
        self.machine = made
        image = load_image(image_of(source), "guest")
        self.symbols = {symbol.name: symbol.va for symbol in image.symbols}
        self.sink = Sink()
        self.domain = made.create(image, DomainConfig("guest", pages, vcpus=vcpus), console=self.sink)
        self.dispatcher = made.residents[self.domain.domid].dispatcher
        self.dispatcher.load(self.domain.vcpus[0])
        self.cpu = self.dispatcher.cpu
        self.q = self.cpu.vmcb.q
        self.scratch = self.symbols.get("scratch", 0)
        self.end = 0
        """Where the code ends that was loaded last."""
        self.slice_ns = 20_000
        """How long the guest runs at a time; less than an exit costs, and it leaves at each."""

    @property
    def vcpu(self) -> Vcpu:
        """The first vCPU."""
        return self.domain.vcpus[0]

    @property
    def width(self) -> int:
        """Bits of the caller's registers, pointers and structures."""
        return self.dispatcher.call.width

    def call(self, number: int, *arguments: int) -> Result:
        """Perform a hypercall with these words in its argument registers."""
        entry = HYPERCALLS[number]
        assert entry is not None
        words = [value & MASK64 for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
        try:
            return Result(entry.form(self.width).invoke(self.dispatcher.call, *words))
        except XenError as error:
            return Result(-error.errno)

    def store(self, data: bytes) -> int:
        """Put what a call points to into a place of its own."""
        assert len(data) <= _ARGUMENTS_SIZE
        return self.put(data, _ARGUMENTS)

    def fetch(self, address: int, length: int) -> bytes:
        """Bytes of the guest's memory."""
        return self.domain.memory.read(address, length)

    def put(self, data: bytes, offset: int = 0) -> int:
        """Store bytes into the scratch pages; their address."""
        self.domain.memory.write(self.scratch + offset, data)
        return self.scratch + offset

    def get(self, length: int, offset: int = 0) -> bytes:
        """Bytes from the scratch pages."""
        return self.domain.memory.read(self.scratch + offset, length)

    def mfn(self, va: int) -> int:
        """The frame behind an address."""
        return self.domain.memory.for_read(va) >> 12

    def entry(self, va: int) -> int:
        """Machine address of the leaf entry of an address."""
        found = self.domain.memory.leaf_entry(Va(va))
        assert found is not None
        return found

    def unmask_events(self) -> None:
        """Let events in, as the guest does by a store."""
        self.vcpu.info.upcall_masked = False

    @property
    def rflags(self) -> int:
        """RFLAGS, the engine's lazy flags included."""
        return self.domain.engine.rflags()

    # -- running code ------------------------------------------------------------------------------------

    def handlers(self, flags: int = 0) -> None:
        """Register a handler for every vector (and the callbacks); each does nothing for ever."""
        stub = b"\xeb\xfe".ljust(16, b"\xcc")
        self.put(stub * 256 + stub * 16, _HANDLERS)
        base = self.scratch + _HANDLERS
        self.vcpu.traps.handlers = [(base + 16 * vector, flags) for vector in range(256)]

    def handler(self, number: int) -> int:
        """Address of a handler: of a vector, or 256 and up for callbacks."""
        return self.scratch + _HANDLERS + 16 * number

    @property
    def handled(self) -> int | None:
        """The handler that the guest is in, None if in none."""
        number, rest = divmod(self.cpu.vmcb.rip - self.scratch - _HANDLERS, 16)
        return number if 0 <= number < 272 and rest == 0 else None

    def load(self, code: str | bytes, offset: int = _CODE) -> int:
        """Put code into the scratch pages, an endless loop behind it; where its end is."""
        address = self.scratch + offset
        raw = code if isinstance(code, bytes) else assemble(code.replace(";", "\n"), address)
        self.put(raw + b"\xeb\xfe", offset)
        self.end = address + len(raw)
        return self.end

    def execute(self, code: str | bytes) -> int | None:
        """Run code in kernel mode until it ends or is in a handler; that handler, or None.

        RSP is in a scratch page, RBX at one that holds nothing.
        """
        end = self.load(code)
        q = self.q
        q[v.RIP], q[v.RSP], q[v.RBX] = self.scratch + _CODE, self.stack, self.scratch + _FREE
        return self.go(end)

    def go(self, end: int = 0) -> int | None:
        """Run on until the guest spins at `end` or in a handler."""
        engine, clock, call = self.domain.engine, self.machine.clock, self.dispatcher.call
        for _ in range(50 * 20_000 // self.slice_ns):
            call.reschedule = False
            self.dispatcher.enter()
            clock.begin(engine, clock.now() + self.slice_ns)
            try:
                engine.run()
            finally:
                clock.end()
            if self.cpu.vmcb.rip == end or self.handled is not None or not self.domain.alive:
                return self.handled
        raise AssertionError(f"the guest is still busy at {self.cpu.vmcb.rip:#x}")

    @property
    def stack(self) -> int:
        """Where `execute` puts RSP."""
        return self.scratch + _STACK

    @property
    def kernel_stack(self) -> int:
        """A second stack, for entries from user mode."""
        return self.scratch + _KERNEL_STACK

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """64-bit words of the guest's memory."""
        return self.domain.memory.read_words(address, count)

    def frame(self, *, error: bool = False) -> dict[str, int]:
        """The bounce frame at RSP."""
        names = ["rcx", "r11", *(["error"] if error else []), "rip", "cs", "rflags", "rsp", "ss"]
        return dict(zip(names, self.words(self.q[v.RSP], len(names)), strict=True))

    def allow_user_mode(self) -> None:
        """Give the vCPU a user table: the kernel's, so that user code reaches everything."""
        assert self.mmuext(Mmuext.NEW_USER_BASEPTR, self.vcpu.paging.kernel_l4) == 0
        self.vcpu.kernel_stack.sp = self.kernel_stack

    def iret(self, **frame: int) -> int:
        """The iret hypercall; its frame, unless told otherwise, stays in the kernel, at the code page."""
        names = ["rax", "r11", "rcx", "flags", "rip", "cs", "rflags", "rsp", "ss"]
        values = dict.fromkeys(names, 0) | {
            "rip": self.scratch + _CODE, "cs": 0xE030, "rflags": 0x202, "rsp": self.stack, "ss": 0xE02B,
        } | frame  # fmt: skip
        self.q[v.RSP] = self.put(struct.pack("<9Q", *(values[name] for name in names)), _FREE)
        return self.hypercall(Hypercall.IRET)

    def user(self, code: str | bytes, **frame: int) -> int | None:
        """Run code in user mode until it is in a handler or ends."""
        if not self.vcpu.in_kernel:
            self.cpu.raise_exception(3)
        end = self.load(code)
        self.iret(**({"cs": 0xE033} | frame))
        return self.go(end)

    def page(self, number: int) -> int:
        """Address of scratch page `number`."""
        return self.scratch + 4096 * number

    def remap(self, va: int, flags: int) -> Result:
        """update_va_mapping of a page to itself with other flags."""
        return self.update_va_mapping(va, self.mfn(va) << 12 | flags, UVMF_INVLPG)

    def unmap(self, va: int) -> Result:
        """update_va_mapping of a page to nothing."""
        return self.update_va_mapping(va, 0, UVMF_INVLPG)

    def hypercall(self, number: int) -> int:
        """A hypercall as SYSCALL enters it, from the registers; RAX afterwards."""
        self.q[v.RAX] = number
        self.dispatcher.syscall(2)
        return self.q[v.RAX]


@contextmanager
def paused(source: str = Paused.SOURCE, *, vcpus: int = 1, pages: int = PAGES) -> Iterator[Paused]:
    """A `Paused` guest on a machine of its own."""
    with machine(pages=pages) as made:
        yield Paused(made, source, vcpus=vcpus, pages=pages)
