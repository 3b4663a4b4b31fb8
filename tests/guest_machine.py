# SPDX-License-Identifier: GPL-2.0-only
"""Small guests for tests: assemble a kernel, boot it on a machine with virtual time, and look at what it
said; or build it, leave it paused, and call hypercalls from Python as if it had.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pyhv.address import MASK64, Va
from pyhv.cpu import vmcb as v
from pyhv.domain import Domain, DomainConfig
from pyhv.errors import XenError
from pyhv.guests.build import build
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.hypercalls.table import invoke
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig, Outcome
from pyhv.traps.dispatch import Dispatcher
from pyhv.traps.report import CrashReport

PAGES = 1024
SECOND = 1_000_000_000
DOMID_SELF = 0x7FF0

HEADER = """
.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "paging.inc"
"""

START = """
.text
_start:
    kernel_entry
"""


class Sink:
    """A console that remembers."""

    def __init__(self) -> None:
        self.data = b""

    def output(self, data: bytes) -> None:
        self.data += data


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
        return (
            self.outcome is Outcome.ENDED and self.domain.shutdown_reason == 0 and "SUCCESS\n" in self.output
        )


@contextmanager
def machine(*, pages: int = PAGES, virtual_time: bool = True) -> Iterator[Machine]:
    """A machine with room for `pages`, closed at the end."""
    made = Machine(MachineConfig(pages, virtual_time=virtual_time))
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
        outcome = made.run(timeout_ns=timeout_ns)
        return Run(
            outcome,
            sink.data.decode("latin-1"),
            domain,
            made.dispatchers[domain.domid],
            made.reports.get(domain.domid),
        )


def passes(body: str, *, vcpus: int = 1, timeout_ns: int = 5 * SECOND, prologue: str = "") -> Run:
    """Run `body` after the usual start (console, and traps if `prologue` says so); it must print SUCCESS."""
    done = run(HEADER + START + prologue + body, vcpus=vcpus, timeout_ns=timeout_ns)
    assert done.passed, (done.outcome, done.output, done.domain.crash_cause)
    return done


TRAPS = "    call traps_init\n"


class Paused:
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
        self.dispatcher = made.dispatchers[self.domain.domid]
        self.dispatcher.load(self.domain.vcpus[0])
        self.cpu = self.dispatcher.cpu
        self.q = self.cpu.vmcb.q
        self.scratch = self.symbols.get("scratch", 0)

    @property
    def vcpu(self):  # type: ignore[no-untyped-def]
        return self.domain.vcpus[0]

    def call(self, number: int, *arguments: int) -> int:
        """Perform a hypercall; its result as a signed number."""
        entry = HYPERCALLS[number]
        assert entry is not None
        full = tuple(value & MASK64 for value in (*arguments, 0, 0, 0, 0, 0)[:5])
        try:
            return invoke(entry, self.dispatcher.call, full)
        except XenError as error:
            return -error.errno

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

    def page(self, number: int) -> int:
        """Address of scratch page `number`."""
        return self.scratch + 4096 * number

    def remap(self, va: int, flags: int) -> int:
        """update_va_mapping of a page to itself with other flags."""
        return self.call(14, va, self.mfn(va) << 12 | flags, 2)

    def hypercall(self, number: int) -> int:
        """A hypercall as SYSCALL enters it, from the registers; RAX afterwards."""
        self.q[v.RAX] = number
        self.dispatcher.syscall()
        return self.q[v.RAX]


@contextmanager
def paused(source: str = Paused.SOURCE, *, vcpus: int = 1, pages: int = PAGES) -> Iterator[Paused]:
    """A `Paused` guest on a machine of its own."""
    with machine(pages=pages) as made:
        yield Paused(made, source, vcpus=vcpus, pages=pages)
