# SPDX-License-Identifier: GPL-2.0-only
"""Code on which the emulator would end the process: the guest gets #UD, as on hardware, and lives on."""

import signal
import subprocess
import sys
import threading

import pytest
from bare_engine import CODE, Bare, Exit, at

from pyhv.abi.x86 import Vector
from pyhv.cpu.guard import guard
from pyhv.testing.guest_machine import paused

LOCKED = {
    "bt": "f0480fa3db",
    "bts": "f00fabc3",
    "btr": "f0660fb3c3",
    "btc": "f00fbbc3",
    "by a constant": "f00fbaeb01",
}


def test_it_is_active_with_the_library_that_we_install() -> None:
    assert guard() is not None


@pytest.mark.parametrize("code", LOCKED.values(), ids=list(LOCKED))
def test_a_locked_bit_test_of_a_register_is_undefined(code: str) -> None:
    with paused() as guest:
        guest.handlers()
        for _ in range(3):
            assert guest.execute(bytes.fromhex(code)) == Vector.UD
            assert guest.execute("mov rax, 5; lock bts qword ptr [rbx], 3") is None
            assert guest.q[0] == 5
        guest.allow_user_mode()
        assert guest.user(bytes.fromhex(code)) == Vector.UD
        assert guest.machine.audit() == []


@pytest.mark.promise("I-13")
def test_very_many_of_them_cost_nothing() -> None:
    """A translation that is given up leaves little behind, and that is thrown away in time."""
    with paused() as guest:
        guest.handlers()
        for _ in range(2000):
            assert guest.execute(bytes.fromhex("f00fabc3")) == Vector.UD


def test_an_abort_outside_guests_still_ends_the_process() -> None:
    code = (
        "import ctypes; from pyhv.cpu import guard, slots; assert guard.guard();"
        "ctypes.CFUNCTYPE(None)(slots.library().slot('abort').value)()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGABRT


def test_two_engines_in_two_threads_do_not_meet() -> None:
    """Each thread's abort is its own engine's #UD, also while the other engine executes."""
    engines = [Bare(tuned=False), Bare(tuned=False)]  # a tuned one refuses such code before it aborts
    failures: list[BaseException] = []

    def execute(bare: Bare, busy: int) -> None:
        try:
            for number in range(300):
                bare.set_data(0)
                # The code differs each time: only what is translated anew can abort.
                seen = bare.run(f"mov ecx, {busy}; again:; lock inc qword ptr [rbx]; dec ecx; jnz again; ud2")
                assert (seen.kind, bare.data()) == ("invalid", busy)
                code = bytes([0xB8, *number.to_bytes(4, "little")]) + bytes.fromhex("f0480fa3db")
                assert bare.run(code) == Exit("invalid", at(CODE, 5))
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=execute, args=(bare, busy))
        for bare, busy in zip(engines, (100, 3000), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for bare in engines:
        bare.close()
    assert not failures
