# SPDX-License-Identifier: GPL-2.0-only
"""Guests that attack: every attack refused, neighbours undisturbed, memory sound, nothing left behind.

And the other way round: with a check of pyhv taken out, the guest whose business it is must notice.
"""

import fnmatch
import tomllib
from collections.abc import Callable
from pathlib import Path
from struct import error as struct_error
from typing import Any

import pytest
from lanes import replaceable

from docgen.hostile import document, read
from pyhv.abi.errno import Errno
from pyhv.abi.grants import MapFlag
from pyhv.abi.numbers import Hypercall, Sched, Shutdown
from pyhv.abi.x86 import PTE_RW
from pyhv.cpu.exits import ExitKind, ExitRecord
from pyhv.cpu.vmcb import RBX, RDI
from pyhv.domain import debug as debug_registers
from pyhv.domain.config import DomainConfig
from pyhv.errors import ImageError, XenError
from pyhv.events import channels
from pyhv.events.channels import EventChannels
from pyhv.events.fifo import Fifo
from pyhv.grants import entries
from pyhv.grants.maptrack import Mapping, Maptrack
from pyhv.grants.table import GrantTable
from pyhv.guests.build import build_builtin
from pyhv.guests.catalogue import HOSTILE, source_of
from pyhv.hypercalls import context, exchange, grantmap
from pyhv.hypercalls import cpustate as cpu_calls
from pyhv.hypercalls import grants as grant_calls
from pyhv.hypercalls import vcpu as vcpu_calls
from pyhv.hypercalls.guest_context import GuestContext
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.mmu import tables
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.memory import GuestMemory
from pyhv.mmu.pae import PaePageTables
from pyhv.mmu.tables import PageTables
from pyhv.testing.bench import Bench
from pyhv.testing.guest_machine import Sink
from pyhv.traps import longmode, msr
from pyhv.traps.compat import CompatCpu
from pyhv.traps.guestcpu import IRET_FLAGS, GuestCpu
from pyhv.until import Outcome
from pyhv.xenstore.peers import introduce_peers

ROOT = Path(__file__).parents[2]
PAGES = 4096
SECOND = 1_000_000_000
INTERVAL = 997


class Auditor:
    """Counts everything anew at every so many exits, and when a guest is about to end."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._exits = 0
        self.endings = 0

    def exit(self, record: ExitRecord) -> None:
        self._exits += 1
        first = record.registers[RDI if self._machine.residents[record.domid].domain.width == 64 else RBX]
        ending = (
            record.kind is ExitKind.HYPERCALL
            and record.detail == Hypercall.SCHED_OP
            and first == Sched.SHUTDOWN
        )
        if ending or self._exits % INTERVAL == 0:
            self.endings += ending
            assert self._machine.audit() == [], record


@pytest.mark.promise("I-1", "I-14", "L-1", "L-3", "L-17")
@pytest.mark.parametrize("virtual", [True, False], ids=["virtual", "real"])
@pytest.mark.parametrize("name", HOSTILE)
def test_every_attack_is_refused(name: str, virtual: bool) -> None:
    """Beside ping and pong, which share a page and a port meanwhile."""
    machine = Machine(MachineConfig(3 * PAGES, virtual_time=virtual))
    try:
        free = machine.frames.free_count
        sinks, domains = {}, []
        for guest in ("ping", "pong", name):
            sinks[guest] = Sink()
            config = DomainConfig(guest, PAGES, vcpus=2 if guest == name else 1)
            image = load_image(build_builtin(guest), guest)
            domains.append(machine.create(image, config, console=sinks[guest]))
        introduce_peers(machine.store, machine.residents.domids())
        auditor = Auditor(machine)
        machine.observe(auditor)
        outcome = machine.run(timeout_ns=60 * SECOND)
        said = {guest: sink.data.decode("latin-1") for guest, sink in sinks.items()}
        assert outcome is Outcome.ENDED, said
        for guest, domain in zip(sinks, domains, strict=True):
            assert "SUCCESS\n" in said[guest], said[guest][-600:]
            assert "FAIL" not in said[guest]
            assert domain.life.reason == Shutdown.POWEROFF
        assert "  10 rounds\n" in said["ping"]
        assert auditor.endings >= 3
        assert machine.audit() == []
        assert machine.frames.free_count == free
        assert all(not machine.frames.owned_by(domid).size for domid in range(1, len(domains) + 1))
    finally:
        machine.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_every_attack_is_refused_by_restored_machines(name: str) -> None:
    """What an attacker has prepared is in a snapshot, and what refuses it is in force again."""
    with Bench(restored=True, seed=len(name)) as bench:
        free = bench.machine.frames.free_count
        for guest in ("ping", "pong", name):
            bench.add(guest, vcpus=2 if guest == name else 1)
        assert bench.run() is Outcome.ENDED
        assert bench.machines > 1
        for console in bench.consoles:
            assert "SUCCESS\n" in console.text, console.text[-600:]
            assert "FAIL" not in console.text
        assert all(domain.life.reason == Shutdown.POWEROFF for domain in bench.domains)
        assert bench.machine.audit() == []
        assert bench.machine.frames.free_count == free


@pytest.mark.promise("I-14")
def test_all_at_once() -> None:
    """They attack each other, too: their neighbours' frames, ports and grants are among what they name."""
    machine = Machine(MachineConfig(len(HOSTILE) * PAGES, virtual_time=True))
    try:
        free = machine.frames.free_count
        sinks = {name: Sink() for name in HOSTILE}
        for name, sink in sinks.items():
            image = load_image(build_builtin(name), name)
            machine.create(image, DomainConfig(name, PAGES, vcpus=2), console=sink)
        introduce_peers(machine.store, machine.residents.domids())
        assert machine.run(timeout_ns=60 * SECOND) is Outcome.ENDED
        for name, sink in sinks.items():
            assert b"SUCCESS\n" in sink.data, (name, sink.data[-300:])
        assert machine.audit() == []
        assert machine.frames.free_count == free
    finally:
        machine.close()


# -- a check taken out is noticed --------------------------------------------------------------------------


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *_arguments, **_more: answer


def _any_linear(self: PageTables, table: int, _level: int, mfn: int, _entry: int) -> None:
    if mfn != table:
        self.frames.type_count[mfn] += 1
        self.frames.refs[mfn] += 1
        self.frames.linear_out[table] += 1
        self.frames.linear_in[mfn] += 1


def _any_chain(self: PageTables, table: int, level: int, mfn: int, entry: int) -> None:
    if entry & PTE_RW:
        raise XenError(Errno.EINVAL, "a writable linear entry")
    _any_linear(self, table, level, mfn, entry)


def _no_flush(self: PageTables, name: str, value: object) -> None:
    object.__setattr__(self, name, False if name in ("flush", "stale") else value)


def _every_half(self: Maptrack, handle: int, _host: int, _device: int) -> tuple[Mapping, MapFlag]:
    return self.get(handle), self.get(handle).halves


_MISS: Callable[..., int] = getattr(GuestMemory, "_miss", _always(0))  # compiled, it has no such attribute


def _miss_without_hole(self: GuestMemory, va: int, write: bool, miss: Callable[..., int] = _MISS) -> int:
    self._hole_start, self._hole_last = 1, 0
    return miss(self, va, write)


def _miss_read_only(self: GuestMemory, va: int, write: bool, miss: Callable[..., int] = _MISS) -> int:
    base = miss(self, va, write=False)
    self._writable[va >> 12] = base
    return base


def _kernel_always(self: CompatCpu) -> None:
    self.vcpu.in_kernel = True


def _adopt(self: context.Call, mfn: int) -> int:
    return mfn


MUTATIONS = [
    ("linear-tables", PageTables, "take_linear", _any_linear),
    ("linear-tables", PageTables, "take_linear", _any_chain),
    ("xen-slots", tables, "XEN_SLOTS", range(256, 257)),
    ("entry-bits", tables, "L1_FORBIDDEN", 0),
    ("entry-bits", tables, "UPPER_FORBIDDEN", 0x180),
    ("type-confusion", FrameTable, "may_be_writable", _always(True)),
    ("type-counts", FrameTable, "may_be_writable", _always(True)),
    ("stale-tlb", PageTables, "__setattr__", _no_flush),
    ("pointers", GuestMemory, "_miss", _miss_without_hole),
    ("counts", grant_calls, "_COUNT_LIMIT", 1 << 32),
    ("counts", exchange, "guest_may_use", _always(True)),
    ("events", EventChannels, "_check_port", _always(None)),
    ("events", EventChannels, "_check_vcpu", _always(None)),
    ("grants", grantmap, "guest_may_use", _always(True)),
    ("grants", GrantTable, "_check_offer", _always(None)),
    ("grants", Maptrack, "select", _every_half),
    ("foreign", context.Call, "own_frame", _adopt),
    ("descriptors", cpu_calls, "fix_descriptor", lambda value, _width: value),
    ("edges", cpu_calls, "is_canonical", _always(True)),
    ("edges", longmode, "IRET_FLAGS", IRET_FLAGS | 0x3000),
    ("edges", msr, "is_canonical", _always(True)),
    ("vcpu-contexts", GuestContext, "check", _always(None)),
    ("emulator", PageTables, "check_leaf", lambda _self, entry: (entry & 0xFFFFFFFFFF000) >> 12),
    ("exhaustion", EventChannels, "_free_port", lambda self: self._unused),
    ("races", PageTables, "__setattr__", _no_flush),
    ("pae32", PaePageTables, "check_slot", _always(None)),
    ("pae32", PaePageTables, "forbidden", _always(0)),
    ("pae32", PaePageTables, "demote", PageTables.demote),
    ("pointers32", vcpu_calls, "guest_may_use", _always(True)),
    ("pointers32", GuestMemory, "_miss", _miss_read_only),
    ("privilege32", cpu_calls, "fix_descriptor", lambda value, _width: value),
    ("privilege32", GuestCpu, "leave_vm86", lambda _self, rflags: rflags),
    ("privilege32", CompatCpu, "note_mode", _kernel_always),
    ("fifo", channels, "check_control_block", _always(None)),
    ("fifo", Fifo, "is_busy", _always(False)),
    ("fifo", Fifo, "check_array", _always(None)),
    ("grants-v2", GrantTable, "_check_offer", _always(None)),
    ("grants-v2", entries, "_START_MASK", 0x7),
    ("debug", debug_registers, "guest_may_use", _always(True)),
]  # fmt: skip


@pytest.mark.promise("I-14")
@pytest.mark.parametrize(
    ("name", "place", "what", "instead"),
    MUTATIONS,
    ids=[f"{one[0]}-{one[2]}-{number}" for number, one in enumerate(MUTATIONS)],
)
def test_a_check_taken_out_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, place: object, what: str, instead: object
) -> None:
    if not replaceable(place):
        pytest.skip("compiled: the check cannot be taken out; the interpreted lane has the same one")
    sink = Sink()
    machine = Machine(MachineConfig(2 * PAGES, virtual_time=True))
    try:
        image = load_image(build_builtin(f"hostile/{name}"), name)
        machine.create(image, DomainConfig(name, PAGES, vcpus=2), console=sink)
        monkeypatch.setattr(place, what, instead)
        try:
            machine.run(timeout_ns=2 * SECOND)
        except (AssertionError, IndexError, KeyError, OverflowError, ValueError, XenError, struct_error):
            return  # pyhv fell over its own missing check: noticed, too
        finally:
            monkeypatch.undo()
    finally:
        machine.close()
    assert b"SUCCESS\n" not in sink.data


# -- names, page, package ----------------------------------------------------------------------------------


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "hostile.md").read_text(encoding="utf-8")
    assert page == document(), "run: python -m docgen.hostile > docs/hostile.md"


@pytest.mark.promise("I-14")
def test_every_source_is_listed_and_described() -> None:
    sources = sorted(path.stem for path in (ROOT / "pyhv" / "guests" / "hostile").glob("*.S"))
    assert sorted(f"hostile/{name}" for name in sources) == sorted(HOSTILE)
    assert len(sources) >= 19
    assert len({read(name).flaw for name in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
def test_an_attack_says_what_it_tries_once(name: str) -> None:
    """Attacks are told apart: no text of a list is used for two of them without saying so."""
    text = source_of(name).read_text(encoding="utf-8")
    assert text.count('hostile_entry "') == 1
    assert f'hostile_entry "{name.removeprefix("hostile/")}"' in text
    assert text.count("hostile_end") == 1


def test_unknown_hostile_guest() -> None:
    with pytest.raises(ImageError, match="no built-in guest named hostile/nobody"):
        build_builtin("hostile/nobody")


def test_the_wheel_takes_all_sources_along() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["pyhv"]
    sources = [path for ending in ("*.S", "*.inc") for path in (ROOT / "pyhv").rglob(ending)]
    assert len(sources) > 30
    for path in sources:
        inside = path.relative_to(ROOT / "pyhv").as_posix()
        depth = inside.count("/")
        assert any(
            fnmatch.fnmatch(inside, pattern) and pattern.count("/") == depth for pattern in patterns
        ), inside
