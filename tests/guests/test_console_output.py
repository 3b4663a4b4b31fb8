# SPDX-License-Identifier: GPL-2.0-only
"""Console output on its way: nothing is lost, late or out of order, and a line costs little."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyhv.cpu.exits import ExitKind, ExitRecord
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.loader.elf import load_image
from pyhv.machine import Machine
from pyhv.testing.guest_machine import HEADER, PAGES, SECOND, START, Sink, image_of, machine
from pyhv.until import Outcome, When

LINES = 3000
LINE = "line 1234567\n"


def printer(wait: str, lines: int = LINES, after: str = "succeed") -> str:
    """A guest that prints numbered lines, notifying for each, and then does `wait`, as it does for room."""
    return (
        HEADER
        + START
        + f"""
    xor r12d, r12d                              # the number of the line
    mov rbx, [rip + console_page]
next_line:
    mov rax, r12
    lea rdi, [rip + the_line + {len(LINE) - 1}]
    mov ecx, 10
digit:
    xor edx, edx
    div rcx
    add dl, '0'
    dec rdi
    mov [rdi], dl
    cmp byte ptr [rdi - 1], ' '
    jne digit
    lea rsi, [rip + the_line]
next_byte:
    mov ecx, [rbx + CONSOLE_out_prod]
    mov eax, ecx
    sub eax, [rbx + CONSOLE_out_cons]
    cmp eax, CONSOLE_OUT_SIZE
    jb room
    call pause
    jmp next_byte
room:
    mov eax, ecx
    and eax, CONSOLE_OUT_SIZE - 1
    mov dl, [rsi]
    mov [rbx + CONSOLE_out + rax], dl
    inc ecx
    mov [rbx + CONSOLE_out_prod], ecx
    inc rsi
    cmp dl, 10
    jne next_byte
    mov edi, EVTCHNOP_send
    lea rsi, [rip + console_port]
    hypercall event_channel_op
    call pause
    inc r12
    cmp r12, {lines}
    jb next_line
    {after}
pause:
    {wait}
    ret
.data
the_line:   .ascii "{LINE[:-1]}\\n"
.balign 8
poll_arg:   .quad console_port, 1, 0
sleep_arg:  .quad nobodys + 4, 1, {SECOND}
nobodys:    .short DOMID_SELF, DOMID_SELF
            .long 0
"""
    )


def expected(lines: int) -> str:
    return "".join(f"line {number:07}\n" for number in range(lines))


SPIN = """
    mov eax, [rbx + CONSOLE_out_prod]
    cmp eax, [rbx + CONSOLE_out_cons]
    jne pause
"""
POLL = """
    mov edi, SCHEDOP_poll
    lea rsi, [rip + poll_arg]
    hypercall sched_op
"""


SLEEP = """
    mov edi, EVTCHNOP_alloc_unbound
    lea rsi, [rip + nobodys]
    hypercall event_channel_op
    must_succeed "a port of its own"
    mov edi, SCHEDOP_poll
    lea rsi, [rip + sleep_arg]
    hypercall sched_op
"""
"""Poll a port on which nothing comes, until a second has passed."""


class Counting(Sink):
    """A console that counts how often it is told something."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def output(self, data: bytes) -> None:
        super().output(data)
        self.calls += 1


def create(made: Machine, source: str) -> tuple[Domain, Counting]:
    sink = Counting()
    image = load_image(image_of(source), "guest")
    return made.create(image, DomainConfig("guest", PAGES), console=sink), sink


def test_lines_go_out_together_and_are_acknowledged_together() -> None:
    with machine() as made:
        domain, sink = create(made, printer(""))
        rung = []
        console = made.dom0.console(domain.domid).ring
        notify = console._notify
        console._notify = lambda: (rung.append(made.now()), notify())[0]
        assert made.run() is Outcome.ENDED
        assert sink.data.decode() == expected(LINES) + "SUCCESS\n"
        assert sink.calls <= 3
        assert len(rung) <= 3


def test_a_guest_that_looks_whether_all_was_read_need_not_wait() -> None:
    """Some kernels do so for each character, without giving the processor away."""
    with machine() as made:
        _, sink = create(made, printer(SPIN))
        assert made.run(timeout_ns=1_000 * LINES * 10) is Outcome.ENDED
        assert sink.data.decode() == expected(LINES) + "SUCCESS\n"


def test_a_guest_that_waits_to_be_notified_is() -> None:
    with machine() as made:
        _, sink = create(made, printer(POLL, lines=1))
        assert made.run() is Outcome.ENDED
        assert sink.data.decode() == expected(1) + "SUCCESS\n"


def test_a_guest_that_waits_for_something_else_is_not_woken() -> None:
    with machine() as made:
        _, sink = create(made, printer(SLEEP, lines=1))
        assert made.run(timeout_ns=SECOND - 1000) is Outcome.TIMEOUT
        assert sink.data.decode() == expected(1)
        assert made.run() is Outcome.ENDED
        assert sink.data.decode() == expected(1) + "SUCCESS\n"


@pytest.mark.promise("L-12")
@pytest.mark.parametrize("virtual_time", [True, False])
def test_output_is_there_as_soon_as_the_guest_sleeps(virtual_time: bool) -> None:
    with machine(virtual_time=virtual_time) as made:
        domain, sink = create(made, printer("", 3, SLEEP + "succeed"))
        assert made.run(When(lambda: domain.vcpus[0].blocked), timeout_ns=10 * SECOND) is Outcome.STOPPED
        assert sink.data == expected(3).encode()


def test_the_last_words_of_a_guest_that_crashes_are_heard() -> None:
    with machine() as made:
        domain, sink = create(made, printer("", 500, "xor eax, eax\nmov rbx, 0x7000000000\njmp rbx"))
        assert made.run() is Outcome.ENDED
        assert domain.life.crashed
        assert sink.data.decode() == expected(500)


def test_output_survives_a_fault_of_the_hypervisor() -> None:
    class Faulty:
        def exit(self, record: ExitRecord) -> None:
            if record.kind is ExitKind.HYPERCALL and record.detail == 29:
                raise RuntimeError

    with machine() as made:
        made.observe(Faulty())
        _, sink = create(made, printer("", 5, "mov edi, SCHEDOP_yield\nxor esi, esi\nhypercall sched_op"))
        with pytest.raises(RuntimeError):
            made.run()
    assert sink.data.decode() == expected(5)


@pytest.mark.promise("I-19")
def test_two_guests_and_a_slow_reader(tmp_path: Path) -> None:
    path = tmp_path / "printer.img"
    path.write_bytes(image_of(printer("")))
    pyhv = Path(sys.executable).with_name("pyhv")
    command = [str(pyhv), "boot", str(path), "--count", "2", "--memory", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        output = b""
        while data := os.read(process.stdout.fileno(), 1500):
            output += data
            time.sleep(0.002)
    assert process.returncode == 0
    found: dict[str, str] = {}
    for line in output.decode().splitlines(keepends=True):
        name, _, rest = line.partition("| ")
        found[name] = found.get(name, "") + rest
    assert list(found.values()) == [expected(LINES) + "SUCCESS\n"] * 2
