# SPDX-License-Identifier: GPL-2.0-only
"""With a check of pyhv taken out, the hostile guest whose business it is notices: in either lane."""

import os
from pathlib import Path
from struct import error as struct_error

import pytest
from lanes import require_native
from mutants import ROOT, Mutant

from pyhv.domain.config import DomainConfig
from pyhv.errors import XenError
from pyhv.guests.build import build_builtin
from pyhv.guests.catalogue import nets_of
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.testing.guest_machine import Sink

PAGES = 4096
SECOND = 1_000_000_000

ALWAYS = "lambda *_arguments, **_more: True"
NEVER_REFUSED = "lambda *_arguments, **_more: None"
ANY_LINEAR = """\
if mfn != table:
    self.frames.type_count[mfn] += 1
    self.frames.refs[mfn] += 1
    self.frames.linear_out[table] += 1
    self.frames.linear_in[mfn] += 1"""
ANY_CHAIN = f"""\
if entry & PTE_RW:
    raise XenError(Errno.EINVAL, "a writable linear entry")
{ANY_LINEAR}"""
READ_ONLY_WRITTEN = """\
if write:
    base = self._miss(va, False)
    self._writable[va >> 12] = base
    return base
..."""
NO_HOLE = "self._hole_start, self._hole_last = 1, 0\n..."
EVERY_HALF = "return self.get(handle), self.get(handle).halves"

MUTANTS = [
    Mutant("linear-tables", "pyhv.mmu.tables", "PageTables.take_linear", ANY_LINEAR),
    Mutant("linear-tables", "pyhv.mmu.tables", "PageTables.take_linear", ANY_CHAIN),
    Mutant("xen-slots", "pyhv.mmu.tables", "XEN_SLOTS", "range(256, 257)"),
    Mutant("entry-bits", "pyhv.mmu.tables", "PageTables.check_leaf", "entry &= ~L1_FORBIDDEN\n..."),
    Mutant("entry-bits", "pyhv.mmu.tables", "UPPER_FORBIDDEN", "0x180"),
    Mutant("type-confusion", "pyhv.mmu.counts", "FrameCounts.may_be_writable", "return True"),
    Mutant("type-counts", "pyhv.mmu.counts", "FrameCounts.may_be_writable", "return True"),
    Mutant("stale-tlb", "pyhv.cpu.engine", "Engine.flush_tlb", "return"),
    Mutant("pointers", "pyhv.mmu.memory", "GuestMemory._miss", NO_HOLE),
    Mutant("counts", "pyhv.hypercalls.grants", "_COUNT_LIMIT", "1 << 32"),
    Mutant("counts", "pyhv.hypercalls.exchange", "guest_may_use", ALWAYS),
    Mutant("events", "pyhv.events.channels", "EventChannels._check_port", "return"),
    Mutant("events", "pyhv.events.channels", "EventChannels._check_vcpu", "return"),
    Mutant("grants", "pyhv.hypercalls.grantmap", "guest_may_use", ALWAYS),
    Mutant("grants", "pyhv.grants.table", "GrantTable._check_offer", "return"),
    Mutant("grants", "pyhv.grants.maptrack", "Maptrack.select", EVERY_HALF),
    Mutant("foreign", "pyhv.hypercalls.context", "Call.own_frame", "return number"),
    Mutant("descriptors", "pyhv.hypercalls.cpustate", "fix_descriptor", "lambda value, _width: value"),
    Mutant("edges", "pyhv.hypercalls.cpustate", "is_canonical", ALWAYS),
    Mutant("edges", "pyhv.traps.longmode", "IRET_FLAGS", "0x3D7DD5"),
    Mutant("edges", "pyhv.traps.msr", "is_canonical", ALWAYS),
    Mutant("vcpu-contexts", "pyhv.hypercalls.guest_context", "GuestContext.check", "return"),
    Mutant("emulator", "pyhv.mmu.tables", "PageTables.check_leaf", "return (entry & 0xFFFFFFFFFF000) >> 12"),
    Mutant("exhaustion", "pyhv.events.channels", "EventChannels._free_port", "return self._unused"),
    Mutant("races", "pyhv.cpu.engine", "Engine.flush_tlb", "return"),
    Mutant("pae32", "pyhv.mmu.pae", "PaePageTables.check_slot", "return"),
    Mutant("pae32", "pyhv.mmu.pae", "PaePageTables.forbidden", "return 0"),
    Mutant("pae32", "pyhv.mmu.pae", "PaePageTables.demote", "PageTables.demote(self, mfn, level)"),
    Mutant("pointers32", "pyhv.hypercalls.vcpu", "guest_may_use", ALWAYS),
    Mutant("pointers32", "pyhv.mmu.memory", "GuestMemory._miss", READ_ONLY_WRITTEN),
    Mutant("privilege32", "pyhv.hypercalls.cpustate", "fix_descriptor", "lambda value, _width: value"),
    Mutant("privilege32", "pyhv.traps.guestcpu", "GuestCpu.leave_vm86", "return rflags"),
    Mutant("privilege32", "pyhv.traps.compat", "CompatCpu.note_mode", "self.vcpu.in_kernel = True"),
    Mutant("fifo", "pyhv.events.channels", "check_control_block", NEVER_REFUSED),
    Mutant("fifo", "pyhv.events.fifo", "Fifo.is_busy", "return False"),
    Mutant("fifo", "pyhv.events.fifo", "Fifo.check_array", "return"),
    Mutant("grants-v2", "pyhv.grants.table", "GrantTable._check_offer", "return"),
    Mutant("grants-v2", "pyhv.grants.entries", "_START_MASK", "0x7"),
    Mutant("debug", "pyhv.domain.debug", "guest_may_use", ALWAYS),
    Mutant("netfront", "pyhv.devices.netif", "_fragment", "return Fragment(number, ref, offset, size)"),
    Mutant("netfront", "pyhv.devices.netif", "MAX_SLOTS", "1000"),
    Mutant("netfront", "pyhv.devices.netif", "_MAX_EXTRAS", "1000"),
    Mutant("netfront", "pyhv.devices.netif", "Packet.has_frame", "return True"),
    Mutant("netfront", "pyhv.devices.borrowing", "check_granted", NEVER_REFUSED),
    Mutant(
        "netfront",
        "pyhv.devices.sharedring",
        "BackRing.unread",
        "return self.memory.read_u32(0) - self.req_cons & MASK32",
    ),
]
ALSO_COMPILED = {0, 5, 8, 11, 32}
"""Numbers of those that are compiled in every run of the tests; with PYHV_DEEP set, all are."""


@pytest.mark.promise("I-14")
@pytest.mark.parametrize(
    "number",
    range(len(MUTANTS)),
    ids=[f"{one.guest}-{one.what}-{number}" for number, one in enumerate(MUTANTS)],
)
def test_a_check_taken_out_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int) -> None:
    mutant = MUTANTS[number]
    if mutant.compiled:
        if number not in ALSO_COMPILED and "PYHV_DEEP" not in os.environ:
            pytest.skip("compiled: 'make mutants' compiles this one, too")
        require_native()
        assert "SUCCESS\n" not in mutant.run_compiled(tmp_path / "tree").stdout
        return
    sink = Sink()
    machine = Machine(MachineConfig(2 * PAGES, virtual_time=True))
    try:
        image = load_image(build_builtin(f"hostile/{mutant.guest}"), mutant.guest)
        config = DomainConfig(mutant.guest, PAGES, vcpus=2, nets=nets_of(f"hostile/{mutant.guest}"))
        machine.create(image, config, console=sink)
        mutant.apply(monkeypatch)
        try:
            machine.run(timeout_ns=2 * SECOND)
        except (AssertionError, IndexError, KeyError, OverflowError, ValueError, XenError, struct_error):
            return  # pyhv fell over its own missing check: noticed, too
        finally:
            monkeypatch.undo()
    finally:
        machine.close()
    assert b"SUCCESS\n" not in sink.data


def test_a_mutant_that_is_none_is_not_noticed(tmp_path: Path) -> None:
    """What is compiled alone works with the others: it is the missing check that the tests above notice."""
    require_native()
    done = Mutant("linear-tables", "pyhv.mmu.tables", "PageTables.take_linear", "...").run_compiled(
        tmp_path / "tree"
    )
    assert "SUCCESS\n" in done.stdout, done.stderr
    assert done.returncode == 0


def test_a_mutant_differs_from_the_source_where_it_says() -> None:
    for mutant in MUTANTS:
        text = (ROOT / Path(*mutant.module.split(".")).with_suffix(".py")).read_text(encoding="utf-8")
        assert mutant.source() != text, mutant
