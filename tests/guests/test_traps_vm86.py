# SPDX-License-Identifier: GPL-2.0-only
"""Virtual-8086 mode does not exist in long mode, but the emulator's IRET enters it, from every ring.

What a guest's kernel sees of a process that has done so must not look like the kernel itself.
"""

import pytest

from pyhv.abi.x86 import FLAG_IOPL, FLAG_VM
from pyhv.cpu import vmcb as v
from pyhv.testing.guest_machine import Paused, paused

UD, AT = 6, 0x10
IRET_TO_VM86 = """
    mov dword ptr [rbx], {at:#x}
    mov dword ptr [rbx + 4], {cs:#x}
    mov dword ptr [rbx + 8], 0x23202
    mov dword ptr [rbx + 12], 0x100
    mov dword ptr [rbx + 16], {cs:#x}
    mov rsp, rbx
    iretd
"""


def _prepare(guest: Paused, cs: int) -> str:
    """Code that returns to `cs:AT` with VM and IOPL 3, where an invalid instruction is."""
    guest.handlers()
    guest.q[v.RBX] = guest.put(bytes(64))
    guest.domain.memory.write((cs << 4) + AT, b"\x0f\x0b")
    return IRET_TO_VM86.format(at=AT, cs=cs)


def _check(guest: Paused) -> None:
    frame = guest.frame()
    assert not frame["rflags"] & (FLAG_VM | FLAG_IOPL)
    assert not guest.cpu.engine.rflags() & (FLAG_VM | FLAG_IOPL)
    assert guest.vcpu.in_kernel


@pytest.mark.parametrize("cs", [0xE030, 0xE008, 0x1000, 0])
def test_a_process_cannot_pass_for_the_kernel(cs: int) -> None:
    with paused() as guest:
        guest.allow_user_mode()
        assert guest.user(_prepare(guest, cs)) == UD
        _check(guest)
        assert guest.frame()["cs"] & 0xFFFF == 0xE033
        assert guest.frame()["ss"] == 0xE02B


@pytest.mark.parametrize("cs", [0xE033, 0x1000])
def test_a_kernel_remains_one(cs: int) -> None:
    with paused() as guest:
        end = guest.load(_prepare(guest, cs))
        guest.q[v.RIP], guest.q[v.RSP] = guest.scratch + 0x8000, guest.stack
        assert guest.go(end) == UD
        _check(guest)
        assert guest.frame()["cs"] & 0xFFFF == 0xE030
