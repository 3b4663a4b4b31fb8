# SPDX-License-Identifier: GPL-2.0-only
"""Page faults of instruction fetches where code runs into a page that cannot be executed: they come when the
guest is there, not before, and everything before it has been done."""

from collections.abc import Callable, Iterator

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


Run = Callable[..., tuple[int | None, int]]


@pytest.fixture(params=["kernel", "user", "kernel32", "user32"])
def place(request: pytest.FixtureRequest) -> str:
    """The mode that the guest is in, and its width."""
    return str(request.param)


@pytest.fixture
def guest(place: str) -> Iterator[Paused]:
    """A guest whose third scratch page is not there."""
    with paused32() if place.endswith("32") else paused() as made:
        made.handlers()
        if place == "user":
            made.allow_user_mode()
        assert (
            made.call(
                Hypercall.UPDATE_VA_MAPPING, made.page(3), *([0] * (2 if made.domain.width == 64 else 3))
            )
            == 0
        )
        yield made


@pytest.fixture
def run(guest: Paused, place: str) -> Run:
    """Run code that ends where the missing page begins: the handler, and RIP counted from that page."""
    return lambda code, flags=0x202: perform(guest, code, flags, user=place.startswith("user"))


def perform(guest: Paused, code: bytes, flags: int, *, user: bool) -> tuple[int | None, int]:
    guest.put(code, 0x3000 - len(code))
    guest.put(bytes(8), 0x5000)
    start = guest.page(3) - len(code)
    q, width = guest.q, guest.domain.width
    name = "rflags" if width == 64 else "eflags"
    where = {"rip" if width == 64 else "eip": start, name: flags}
    if user:
        guest.iret(**({"cs": 0xE033} if width == 64 else {"cs": 0xE02B}), **where)
    else:
        guest.iret(**where)
    q[v.RBX] = guest.page(5)
    vector = guest.go()
    frame = guest.frame(error=vector in (GP, PF))
    return vector, frame["rip" if width == 64 else "eip"] - guest.page(3)


@pytest.mark.promise("C-13")
@pytest.mark.parametrize("tail", [b"", HALF, b"\x90" + HALF, b"\x0f", b"\xf0"], ids=lambda tail: tail.hex())
def test_what_comes_before_is_done(guest: Paused, run: Run, tail: bytes) -> None:
    assert run(STORE + NOPS + tail) == (PF, -len(tail.lstrip(b"\x90")))
    assert guest.vcpu.info.cr2 == guest.page(3)
    assert guest.get(8, 0x5000) == (5).to_bytes(8, "little")


@pytest.mark.promise("C-13")
def test_what_comes_before_may_fault_itself(guest: Paused, run: Run) -> None:
    assert run(b"\xf4" + NOPS) == (GP, -6)
    assert run(STORE + b"\xf4" + NOPS) == (GP, -6)
    assert guest.get(8, 0x5000) == (5).to_bytes(8, "little")
    assert run(b"\x31\xc9" + b"\xf7\xf1" + NOPS)[0] == 0, "#DE"


def test_single_steps_of_the_guest_s_own_are_traps(run: Run) -> None:
    assert run(STORE + NOPS, 0x302)[0] == DB


def test_no_trap_is_left_behind(guest: Paused, run: Run) -> None:
    """Once the page is there, the guest goes on at full speed."""
    assert run(STORE + NOPS + HALF)[0] == PF
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
