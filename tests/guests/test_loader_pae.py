# SPDX-License-Identifier: GPL-2.0-only
"""A 32-bit domain from its image to its first instruction: the machine takes what the builder wrote."""

from collections.abc import Iterator

import pytest
from elf_maker import BOOTABLE_PAE, note32, pae_kernel

from pyhv.abi.numbers import Assist
from pyhv.abi.structs import StartInfo
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.errors import ConfigError
from pyhv.loader import builder
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.machine import Machine, MachineConfig
from pyhv.mmu.frames import L1, L2, L3
from pyhv.testing.guest_machine import Sink
from pyhv.traps.startup import boot_registers

PAGES = 2048
CS, DS = 0xE019, 0xE021


def image(base: int = 0, extra: bytes = b"") -> KernelImage:
    raw = BOOTABLE_PAE + note32(3, base) + note32(4, 0) + note32(1, base + 0x100000)
    return load_image(pae_kernel(raw + extra), "k")


def created(machine: Machine, kernel: KernelImage) -> Domain:
    return machine.create(kernel, DomainConfig(name="d", memory_pages=PAGES), cmdline=b"a=b", console=Sink())


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine(MachineConfig(memory_pages=2 * PAGES, virtual_time=True))
    yield made
    made.close()


@pytest.mark.parametrize("base", [0, 0x80000000, 0xC0000000])
def test_the_page_tables_are_approved(machine: Machine, base: int) -> None:
    domain = created(machine, image(base))
    assert domain.width == 32
    assert machine.audit() == []
    frames, vcpu = machine.frames, domain.vcpus[0]
    assert frames.type[vcpu.paging.kernel_l4] == L3
    assert frames.pinned[vcpu.paging.kernel_l4] == 1
    owned = frames.owned_by(domain.domid)
    kinds = [int(frames.type[mfn]) for mfn in owned if frames.type_count[mfn]]
    assert (kinds.count(L3), kinds.count(L2), kinds.count(L1)) == (1, 4 - (base >> 30), 2)


def test_the_kernel_finds_itself(machine: Machine) -> None:
    domain = created(machine, image(0xC0000000))
    registers = domain.vcpus[0].context.registers
    domain.memory.l4 = domain.vcpus[0].paging.kernel_l4
    info = StartInfo.unpack(domain.memory.read(registers.rsi, StartInfo.size(32)), 32)
    assert info.magic.rstrip(b"\0") == b"xen-3.0-x86_32p"
    assert info.cmd_line.rstrip(b"\0") == b"a=b"
    assert info.shared_info == domain.shared_info.mfn << 12
    assert domain.memory.read(registers.rip, 4) == b"\xf4" * 4
    assert Assist.PAE_EXTENDED_CR3 in domain.assists


def test_boot_registers() -> None:
    found = boot_registers(0xC0100000, 0xC0200000, 0xC0300000, 32)
    assert (found.rip, found.rsi, found.rsp) == (0xC0100000, 0xC0200000, 0xC0300000)
    assert (found.cs.selector, found.rflags) == (CS, 0x202)
    assert {getattr(found, name).selector for name in ("ss", "ds", "es", "fs", "gs")} == {DS}
    wide = boot_registers(1, 2, 3)
    assert (wide.cs.selector, wide.ss.selector, wide.ds.selector) == (0xE033, 0xE02B, 0)


def test_without_low_memory_nothing_is_left_of_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "FRAMES_BELOW_4G", 1)
    monkeypatch.setattr(KernelImage, "l3_anywhere", False)
    free = machine.frames.free_count
    with pytest.raises(ConfigError, match="create this guest first"):
        created(machine, image())
    assert machine.frames.free_count == free
    assert machine.audit() == []
