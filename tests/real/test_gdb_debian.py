# SPDX-License-Identifier: GPL-2.0-only
"""The real gdb on Debian's kernel, without symbols: addresses are those of the guest's /proc/kallsyms."""

import re
from collections.abc import Iterator

import pytest
from gdb import debugged

import pyhv
from pyhv.observe.digest import Digest
from pyhv.snapshot.snapshot import Snapshot

pytestmark = pytest.mark.debian

COMMAND = "cat /proc/version; ls /\n"
NAMES = ("do_sys_openat2", "jiffies", "linux_banner", "start_kernel")


class Booted:
    """A Linux that waits at its shell, as a snapshot, and where its kernel's symbols are."""

    def __init__(self) -> None:
        with pyhv.Machine(memory="256M", virtual_time=True, seed=3) as machine:
            guest = machine.boot("debian", memory="128M", vcpus=2)
            guest.expect(r"/ # ")
            lines = guest.run(f"grep -wE '{'|'.join(NAMES)}' /proc/kallsyms").output.splitlines()
            self.symbols = {name: f"0x{address}" for address, _, name in map(str.split, lines)}
            self.snapshot: Snapshot = machine.snapshot()


@pytest.fixture(scope="module")
def booted() -> Booted:
    return Booted()


@pytest.fixture
def machine(booted: Booted) -> Iterator[pyhv.Machine]:
    with pyhv.Machine.of(booted.snapshot) as made:
        yield made


def at_symbol(machine: pyhv.Machine, *commands: str) -> str:
    guest = machine.guests[0]
    guest.send(COMMAND)
    return debugged(guest, machine, *commands, symbols=False)


@pytest.mark.promise("T-19")
def test_breakpoints_steps_and_watchpoints_leave_the_run_as_it_was(booted: Booted) -> None:
    """On two vCPUs: the digest of what follows is that of a run without gdb."""

    def history(look: bool) -> tuple[str, str, str]:
        with pyhv.Machine.of(booted.snapshot) as machine:
            digest, told = Digest(), ""
            machine.on("exit", digest.exit)
            at = booted.symbols
            if look:
                stop = ["continue", "x/s $rsi", "backtrace 3", "info registers"]
                told = at_symbol(
                    machine, f"break *{at['do_sys_openat2']}", *stop, *stop, "stepi 10", "info threads",
                    f"x/s {at['linux_banner']}", f"watch *(long *){at['jiffies']}", "delete 1", "continue",
                    "continue", "delete", "detach",
                )  # fmt: skip
            else:
                machine.guests[0].send(COMMAND)
            machine.run(seconds=2)
            return digest.summary(), machine.guests[0].console.text, told

    digest, text, told = history(look=True)
    assert (digest, text) == history(look=False)[:2]
    assert '"/proc/version"' in told
    assert '"Linux version 6.1' in told
    assert re.search(r'Thread 1\.1 "d1v0" .*\n.*Thread 1\.2 "d1v1"', told)
    changes = re.findall(r"Old value = (\d+)\nNew value = (\d+)", told)
    assert len(changes) == 2
    assert all(int(new) == int(old) + 1 for old, new in changes)


def test_backwards(booted: Booted, machine: pyhv.Machine) -> None:
    machine.keep_history()
    at = booted.symbols
    told = at_symbol(
        machine, f"break *{at['do_sys_openat2']}", "continue", "print/x $rsi", "continue", "print/x $rsi",
        "reverse-continue", "print/x $rsi", "x/s $rsi", "reverse-stepi", "stepi", "print/x $rsi", "delete",
        f"watch *(long *){at['jiffies']}", "reverse-continue", "x/i $pc", "delete", "detach",
    )  # fmt: skip
    first, second, again, stepped = re.findall(r"^\$\d = (0x[0-9a-f]+)$", told, re.MULTILINE)
    assert first == again == stepped != second
    assert '"/proc/version"' in told
    (old, new), *_ = re.findall(r"Old value = (\d+)\nNew value = (\d+)", told)
    assert int(new) == int(old) - 1
    assert machine.guests[0].expect("Linux version 6.1")


def test_from_the_first_instruction(booted: Booted) -> None:
    with pyhv.Machine(memory="256M", virtual_time=True) as machine:
        guest = machine.boot("debian", memory="128M")
        told = debugged(
            guest, machine, "print/x $rip", f"hbreak *{booted.symbols['start_kernel']}", "continue",
            f"x/s {booted.symbols['linux_banner']}", "delete", "kill",
        )  # fmt: skip
        assert f"{int(booted.symbols['start_kernel'], 16):#018x}" in told
        assert '"Linux version 6.1' in told
        machine.run(seconds=1)
        assert guest.end is not None
        assert guest.end.reason == "destroyed"


def test_real_time_and_ctrl_c() -> None:
    """The guest's clock stands still while gdb has the guest."""
    with pyhv.Machine(memory="256M", history=True) as machine:
        guest = machine.boot("debian", memory="128M")
        guest.expect(r"/ # ")
        before = machine.time
        told = debugged(
            guest, machine, "shell sleep 3", "continue", "info threads", "shell sleep 3", "detach",
            symbols=False, interrupted=1,
        )  # fmt: skip
        assert "Program received signal SIGINT" in told
        assert re.search(r'Thread 1\.1 "d1v0"', told)
        assert 0.9 < machine.time - before < 2.9
        assert guest.run("echo here").output == "here\n"
