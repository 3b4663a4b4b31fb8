# SPDX-License-Identifier: GPL-2.0-only
"""Model-specific registers as a person finds them in Debian's guest, through /dev/cpu/0/msr.

What is expected is the table of `test_traps_msr.py`, but for what Linux as a PV guest answers by itself.
"""

from collections.abc import Iterator

import pytest
from linux_guest import PROGRAMS, LinuxGuest, Setup, Width, compile_program, kernel_modules
from test_traps_msr import SPACE, TSC, XEN, expected

pytestmark = [pytest.mark.debian, pytest.mark.programs, pytest.mark.xdist_group("msr")]

RANGES = "0 1fff 2000 2000 ffff ffff 40000000 400003ff 80000000 80000000 c0000000 c0001fff c0010000 c0011fff"
BASES = range(0xC0000100, 0xC0000103)
"""FS_BASE, GS_BASE, KERNEL_GS_BASE: the kernel's own values."""
TSC_AUX = 0xC0000103
IGNORED_BY_LINUX = {0x174, 0x175, 0x176, *range(0xC0000081, 0xC0000085)}
"""SYSENTER's and SYSCALL's registers: a PV Linux takes what is written to them, and does nothing."""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxGuest]:
    files = kernel_modules(["arch/x86/kernel/msr"])
    files["msrs"] = compile_program(PROGRAMS / "msrs.c", Width.BITS64)
    with LinuxGuest(Setup(), files, tmp_path_factory.mktemp("guest")) as guest:
        assert guest.run("insmod /programs/msr.ko && ls /dev/cpu/0/msr").status == 0
        yield guest
        guest.power_off()


def test_what_can_be_read(guest: LinuxGuest) -> None:
    ran = guest.run(f"/programs/msrs read {RANGES}")
    assert ran.status == 0, ran.output
    found = {int(number, 16): int(value, 16) for number, value in map(str.split, ran.output.splitlines())}
    readable = {number for number in SPACE if number == TSC or expected(number)[0] is not None}
    assert found.keys() == readable
    theirs = {TSC, TSC_AUX, *BASES}
    assert {number: value for number, value in found.items() if number not in theirs} == {
        number: expected(number)[0] for number in readable - theirs
    }


def test_what_takes_zero(guest: LinuxGuest) -> None:
    """Of the registers that cannot be read."""
    ran = guest.run(f"/programs/msrs write {RANGES}")
    assert ran.status == 0, ran.output
    taking = {
        number
        for numbers, (value, writable) in XEN.items()
        for number in numbers
        if value is None and writable(0)
    }
    assert {int(number, 16) for number in ran.output.split()} == taking | IGNORED_BY_LINUX
