# SPDX-License-Identifier: GPL-2.0-only
"""The programs of tests/support/programs in Debian's guest: what they compute there is what they compute on
hardware.

Every program runs in both widths, on one and two vCPUs, in real and in virtual time, with the engine tuned
and plain. A guest is booted once for all programs of one such setup; with pytest-xdist a setup is a group.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from linux_guest import PROGRAMS, Guests, LinuxGuest, Setup, Width, compile_program

pytestmark = [pytest.mark.debian, pytest.mark.programs]

NAMES = (
    "alias",
    "breakpoints",
    "exceptions",
    "float_flags",
    "fpu_state",
    "lost_exits",
    "memory",
    "reuse",
    "selfmodify",
    "threads",
    "timers",
)
IN_VIRTUAL_TIME = {"fpu_state": "0.1", "lost_exits": "0.05"}
"""Arguments that are seconds. A virtual one has four billion bytes of code, and nothing in it is chance."""
STATUSES = (11, 22, 33)

IN_PLAIN_ENGINES = {
    "exceptions": "operands of SSE instructions must be aligned in a tuned engine only",
    "float_flags": "exception flags of SSE and of some x87 instructions are a tuned engine's",
}
"""Programs that a plain engine fails, as docs/cpu.md says."""
SETUPS = [
    Setup(vcpus=vcpus, virtual=virtual, tuned=tuned)
    for tuned in (True, False)
    for virtual in (False, True)
    for vcpus in (1, 2)
]


def grouped(setups: list[Setup]) -> list[object]:
    """The setups as parameters, all tests of one in the same process."""
    return [pytest.param(setup, id=str(setup), marks=pytest.mark.xdist_group(str(setup))) for setup in setups]


def compiled(_setup: Setup) -> dict[str, Path]:
    programs = {
        f"{name}{width}": compile_program(PROGRAMS / f"{name}.c", width) for name in NAMES for width in Width
    }
    for status in STATUSES:
        programs[f"exit{status}"] = compile_program(
            PROGRAMS / "exitcode.c", Width.BITS64, f"-DSTATUS={status}"
        )
    return programs


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    with Guests(compiled, tmp_path_factory.mktemp("guests")) as guests:
        yield guests


@pytest.fixture
def guest(guests: Guests, setup: Setup) -> LinuxGuest:
    return guests.of(setup)


def test_every_program_is_run() -> None:
    assert {path.stem for path in PROGRAMS.glob("*.c")} == {*NAMES, "exitcode", "msrs"}


def programs_of(setup: Setup) -> list[object]:
    """Every program that is run in a setup, as parameters: setup, name."""
    marks: dict[str, list[pytest.MarkDecorator]] = {name: [] for name in NAMES}
    if not setup.tuned:
        for name, reason in IN_PLAIN_ENGINES.items():
            marks[name] = [pytest.mark.xfail(reason=reason, strict=True)]
    group = pytest.mark.xdist_group(str(setup))
    return [
        pytest.param(setup, name, id=f"{setup}-{name}", marks=[group, *more]) for name, more in marks.items()
    ]


@pytest.mark.promise("C-15")
@pytest.mark.parametrize("width", Width, ids=str)
@pytest.mark.parametrize(("setup", "name"), [row for setup in SETUPS for row in programs_of(setup)])
def test_a_program(guest: LinuxGuest, name: str, width: Width) -> None:
    arguments = IN_VIRTUAL_TIME.get(name, "") if guest.setup.virtual else ""
    ran = guest.run(f"/programs/{name}{width} {arguments}", 60)
    assert ran.status == 0, ran.output
    assert ran.lines(f"^PASS {name}, {width} bits"), ran.output


@pytest.mark.parametrize("width", Width, ids=str)
@pytest.mark.parametrize("setup", grouped([setup for setup in SETUPS if not setup.tuned]))
def test_a_plain_engine_refuses_the_same_instructions(guest: LinuxGuest, width: Width) -> None:
    ran = guest.run(f"/programs/exceptions{width} instructions")
    assert ran.status == 0, ran.output
    assert ran.lines(f"^PASS exceptions, {width} bits"), ran.output


@pytest.mark.parametrize("setup", grouped(SETUPS))
def test_copies_of_different_programs(guest: LinuxGuest) -> None:
    """Copied to the same name one after the other, programs of one size: frames come back with other code."""
    words = " ".join(str(status) for status in STATUSES * 10)
    ran = guest.run(
        f"for s in {words}; do cp /programs/exit$s /tmp/copy; /tmp/copy;"
        " [ $? = $s ] || echo $? instead of $s; rm /tmp/copy; done"
    )
    assert (ran.status, ran.output) == (0, "")


@pytest.mark.parametrize("setup", grouped([setup for setup in SETUPS if setup.vcpus > 1]))
def test_an_nmi_to_the_other_cpu(guest: LinuxGuest) -> None:
    """sysrq l: each CPU prints its stack when an NMI asks it to. Without answer Linux waits ten seconds."""
    begun = float(guest.run("cut -d' ' -f1 /proc/uptime").output)
    ran = guest.run(
        "taskset 1 sh -c 'echo l >/proc/sysrq-trigger'; dmesg | tail -60; grep NMI: /proc/interrupts"
    )
    assert float(guest.run("cut -d' ' -f1 /proc/uptime").output) - begun < 5
    assert ran.lines(r"NMI backtrace for cpu 1"), ran.output
    (counts,) = ran.lines(r"^ *NMI:")
    assert int(counts.split()[2]) > 0
    assert not guest.run("dmesg | grep 'APIC id mismatch'").output


@pytest.mark.parametrize("setup", grouped(SETUPS))
def test_the_kernel_has_no_complaints(guest: LinuxGuest) -> None:
    """After all of them. (The backtrace of an NMI is asked for, and is none.)"""
    assert [line for line in guest.complaints() if "Call Trace" not in line] == []
