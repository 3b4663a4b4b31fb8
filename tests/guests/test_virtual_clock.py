# SPDX-License-Identifier: GPL-2.0-only
"""Reading the clock in virtual time: every way to read it takes its time, so that who waits by it comes to an
end soon, and the reading goes on counting for whoever never stops."""

import pytest

from pyhv.clock import BYTES_PER_NS, EXIT_NS, TSC_READ_NS, VirtualClock
from pyhv.cpu import vmcb as v
from pyhv.cpu.exits import ExitKind
from pyhv.testing.guest_machine import HEADER, START, paused, run

pytestmark = pytest.mark.usefixtures("both_engines")

WAIT_NS = 10_000_000
RDTSC, RDTSCP, RDMSR = "rdtsc", "rdtscp", "mov ecx, 0x10; rdmsr"

WAITING = f"""
    xor ebx, ebx
    call read
    lea rbp, [rax + {WAIT_NS}]
.again:
    inc ebx
    pause
    call read
    cmp rax, rbp
    jb .again
    print_dec rbx
    print " reads\\n"
    succeed
read:
    {{read}}
    shl rdx, 32
    or rax, rdx
    ret
"""


@pytest.mark.promise("T-2")
@pytest.mark.parametrize("read", [RDTSC, RDTSCP, RDMSR])
def test_who_waits_by_the_clock_reads_it_a_few_thousand_times(read: str) -> None:
    """A delay loop of Linux is such a guest."""
    done = run(HEADER + START + WAITING.format(read=read.replace(";", "\n")))
    assert done.passed, (done.output, done.domain.life.cause)
    reads = int(done.output.split()[0])
    most = WAIT_NS // TSC_READ_NS + 1
    assert most * 3 // 4 < reads <= most
    by_hook = done.dispatcher.counts[ExitKind.CLOCK_READ]
    assert by_hook == (0 if read is RDMSR else reads + 1)


def test_a_read_without_hooks_costs_the_same_and_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stops cannot be posted RDTSC is a fault that is emulated."""
    monkeypatch.setattr("pyhv.cpu.engine.posted_stops", lambda: None)
    done = run(HEADER + START + WAITING.format(read=RDTSC))
    assert done.passed, (done.output, done.domain.life.cause)
    most = WAIT_NS // (TSC_READ_NS + EXIT_NS) + 1
    assert most * 3 // 4 < int(done.output.split()[0]) <= most
    assert done.dispatcher.counts[ExitKind.CLOCK_READ] == 0


@pytest.mark.promise("T-2")
@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("code", ["rdtsc;", "rdtscp;"])
def test_a_read_takes_its_time_at_every_level(code: str, user: bool) -> None:
    with paused() as guest:
        guest.handlers()
        guest.allow_user_mode()
        guest.slice_ns = 1_000_000
        reads = f"{code} mov rdi, rax; mov esi, 32; again:; {code} sub esi, 1; jnz again; sub rax, rdi"
        assert (guest.user if user else guest.execute)(reads) is None
        assert 32 * TSC_READ_NS <= guest.q[v.RAX] <= 32 * TSC_READ_NS + 200


def test_a_clock_charges_for_its_tsc() -> None:
    """The charge is taken from the turn, not from the count of executed code."""

    class Budget:
        left = memoryview(bytearray(8)).cast("q")

    class Engine:
        budget = Budget()

    clock = VirtualClock()
    clock.begin(Engine(), 10 * TSC_READ_NS)  # type: ignore[arg-type]
    assert [clock.tsc() for _ in range(3)] == [TSC_READ_NS, 2 * TSC_READ_NS, 3 * TSC_READ_NS]
    Budget.left[0] -= 8 * BYTES_PER_NS
    clock.end()
    assert clock.now() == 3 * TSC_READ_NS + 8
    assert clock.code_bytes == 8 * BYTES_PER_NS


@pytest.mark.promise("T-2")
@pytest.mark.parametrize(
    ("code", "exits"),
    [("rdtsc; rdtsc", 0), ("rdtsc; cpuid; rdtsc", 1), ("rdtsc; in al, 0x80; in al, 0x80; rdtsc", 2)],
)
def test_exits_inside_a_block_are_charged(code: str, exits: int) -> None:
    with paused() as guest:
        guest.handlers()
        guest.vcpu.ports.iopl = 1
        code = code.replace("rdtsc", "rdtsc; shl rdx, 32; or rax, rdx; xchg rax, r9; mov r8, rax")
        assert guest.execute(code) is None
        assert guest.q[v.R9] - guest.q[v.R8] == TSC_READ_NS + exits * EXIT_NS
