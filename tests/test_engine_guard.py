# SPDX-License-Identifier: GPL-2.0-only
"""Code on which the emulator would end the process: the guest gets #UD, as on hardware, and lives on."""

import signal
import subprocess
import sys

import pytest
from guest_machine import paused

from pyhv.abi.x86 import Vector
from pyhv.cpu.guard import guard

LOCKED = {
    "bt": "f0480fa3db",
    "bts": "f00fabc3",
    "btr": "f0660fb3c3",
    "btc": "f00fbbc3",
    "by a constant": "f00fbaeb01",
}


def test_it_is_active_with_the_library_that_we_install() -> None:
    assert guard().active


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


def test_very_many_of_them_cost_nothing() -> None:
    """A translation that is given up leaves little behind, and that is thrown away in time."""
    with paused() as guest:
        guest.handlers()
        for _ in range(2000):
            assert guest.execute(bytes.fromhex("f00fabc3")) == Vector.UD


def test_an_abort_outside_guests_still_ends_the_process() -> None:
    code = (
        "import ctypes; from pyhv.cpu import guard, slots; assert guard.guard().active;"
        "ctypes.CFUNCTYPE(None)(slots.library().slot('abort').value)()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGABRT
