# SPDX-License-Identifier: GPL-2.0-only
"""Page faults of instruction fetches where code runs into a page that cannot be executed: they come when the
guest is there, not before, and everything before it has been done."""

import pytest
from bare_engine import CODE_2, DATA, Bare, at

from pyhv.abi.numbers import Hypercall
from pyhv.cpu import vmcb as v
from pyhv.testing.compat_machine import paused32
from pyhv.testing.guest_machine import Paused, paused
from pyhv.testing.vectors import DB, GP, PF

STORE = b"\xc7\x03\x05\x00\x00\x00"  # mov dword ptr [rbx], 5
HALF = b"\xb8\x01"  # mov eax, ...
NOPS = b"\x90" * 5


@pytest.fixture(params=["kernel", "user", "kernel32", "user32"])
def guest(request: pytest.FixtureRequest):
    """A guest whose third scratch page is not there; and its ring."""
    with paused32() if request.param.endswith("32") else paused() as made:
        made.handlers()
        made.ring = request.param.removesuffix("32")
        if request.param == "user":
            made.allow_user_mode()
        assert (
            made.call(
                Hypercall.UPDATE_VA_MAPPING, made.page(3), *([0] * (2 if made.domain.width == 64 else 3))
            )
            == 0
        )
        yield made


def run(guest: Paused, code: bytes, flags: int = 0x202) -> tuple[int | None, int]:
    """Run code that ends where the missing page begins: the handler, and RIP counted from that page."""
    guest.put(code, 0x3000 - len(code))
    guest.put(bytes(8), 0x5000)
    start = guest.page(3) - len(code)
    q, width = guest.q, guest.domain.width
    name = "rflags" if width == 64 else "eflags"
    where = {"rip" if width == 64 else "eip": start, name: flags}
    if guest.ring == "user":
        guest.iret(**({"cs": 0xE033} if width == 64 else {"cs": 0xE02B}), **where)
    else:
        guest.iret(**where)
    q[v.RBX] = guest.page(5)
    vector = guest.go()
    frame = guest.frame(error=vector in (GP, PF))
    return vector, frame["rip" if width == 64 else "eip"] - guest.page(3)


@pytest.mark.promise("C-13")
@pytest.mark.parametrize("tail", [b"", HALF, b"\x90" + HALF, b"\x0f", b"\xf0"], ids=lambda tail: tail.hex())
def test_what_comes_before_is_done(guest: Paused, tail: bytes) -> None:
    assert run(guest, STORE + NOPS + tail) == (PF, -len(tail.lstrip(b"\x90")))
    assert guest.vcpu.info.cr2 == guest.page(3)
    assert guest.get(8, 0x5000) == (5).to_bytes(8, "little")


@pytest.mark.promise("C-13")
def test_what_comes_before_may_fault_itself(guest: Paused) -> None:
    assert run(guest, b"\xf4" + NOPS) == (GP, -6)
    assert run(guest, STORE + b"\xf4" + NOPS) == (GP, -6)
    assert guest.get(8, 0x5000) == (5).to_bytes(8, "little")
    assert run(guest, b"\x31\xc9" + b"\xf7\xf1" + NOPS)[0] == 0, "#DE"


def test_single_steps_of_the_guest_s_own_are_traps(guest: Paused) -> None:
    assert run(guest, STORE + NOPS, 0x302)[0] == DB


def test_no_trap_is_left_behind(guest: Paused) -> None:
    """Once the page is there, the guest goes on at full speed."""
    assert run(guest, STORE + NOPS + HALF)[0] == PF
    assert not guest.cpu.vmcb.d[v.HFLAGS] & v.HF_TF
    assert not guest.cpu.stepping
    assert guest.vcpu.debug.approach == (0, 0)


def test_the_emulator_reports_them_at_the_start_of_the_block() -> None:
    """Why all this is needed: if this fails, it is not any more."""
    bare = Bare()
    code = STORE + NOPS
    bare.ram.writable.raw[at(DATA) - len(code) : at(DATA)] = code
    bare.engine.invalidate_code(CODE_2)
    bare.q[v.RIP], bare.q[v.RBX] = at(DATA) - len(code), at(DATA)
    exit_ = bare.go()
    assert (exit_.vector, exit_.rip, bare.data()) == (PF, at(DATA) - len(code), 0)
    bare.close()
