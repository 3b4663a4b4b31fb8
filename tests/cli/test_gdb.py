# SPDX-License-Identifier: GPL-2.0-only
"""pyhv's own guests under the real gdb."""

import re
from collections.abc import Callable, Iterator

import pytest
from gdb import debugged

import pyhv
from pyhv.images.source import symbol_file
from pyhv.observe.digest import Digest

Debug = Callable[..., tuple[str, pyhv.Guest]]


@pytest.fixture(params=["tuned", "plain"])
def debug(request: pytest.FixtureRequest) -> Iterator[Debug]:
    machines: list[pyhv.Machine] = []

    def run(name: str, *commands: str, vcpus: int = 1) -> tuple[str, pyhv.Guest]:
        machine = pyhv.Machine(memory="64M", virtual_time=True, tuned=request.param == "tuned")
        machines.append(machine)
        guest = machine.boot(name, vcpus=vcpus)
        return debugged(guest, machine, *commands), guest

    yield run
    for machine in machines:
        machine.close()


def test_a_session(debug: Debug) -> None:
    output, guest = debug(
        "hello", "info threads", "break *console_init", "continue", "backtrace", "stepi", "x/i $pc", "delete",
        "continue",
    )  # fmt: skip
    assert re.search(r'Thread 1\.1 "d1v0" \(hello d1v0: .*in kernel mode\).*in _start \(\)', output)
    assert "Breakpoint 1, 0x0000000000100027 in console_init ()" in output
    assert re.search(r"#1 .* in _start \(\)", output)
    assert re.search(r"=> 0x10002e <console_init\+7>:\s+mov", output)
    assert "exited normally" in output
    assert guest.end is not None
    assert guest.end.reason == "poweroff"
    assert guest.console.text.endswith("SUCCESS\n")


def test_registers_are_read_and_written(debug: Debug) -> None:
    output, _guest = debug(
        "hello", "break *format_dec", "continue", "delete", "print $rax", "set $rdi = 0x123456789",
        "print/x $rdi", "set $xmm3.v2_int64[1] = 77", "print $xmm3.v2_int64", "print $mxcsr", "print $fctrl",
        "set $gs_base = 0x5000", "print/x $gs_base", "print $cs", "set $cs = 3", "set $eflags = 0x247",
        "print $eflags", "stepi", "print/x $rdi", "print $xmm3.v2_int64[1]",
    )  # fmt: skip
    assert "$2 = 0x123456789" in output
    assert "$3 = {0, 77}" in output
    assert "[ IM DM ZM OM UM PM ]" in output
    assert "= 895" in output
    assert "= 0x5000" in output
    assert "cannot be written" in output
    assert "[ CF PF ZF IF ]" in output
    assert output.count("= 0x123456789") == 2
    assert output.count("= 77") == 1


def test_memory(debug: Debug) -> None:
    output, _guest = debug(
        "hello", "break *puts", "continue", "delete", "print/x *(int*)&start_info",
        "print *(int*)0x7000000000",
        "set {int}0x7000000000 = 1", "set {int}&start_info = 0x10d004", "print/x {int}&start_info",
        "find /b &hypercall_page, +8, 0xb8",
    )  # fmt: skip
    assert "= 0x10d000" in output
    assert output.count("Cannot access memory at address 0x7000000000") == 1
    assert "$3" not in output
    assert "= 0x10d004" in output


def test_a_32_bit_guest(debug: Debug) -> None:
    output, guest = debug(
        "hello32", "info registers eip esp cs", "hbreak *puts", "continue", "backtrace", "stepi", "print $pc",
        "print $xmm7.v4_int32", "print $gs_base", "delete", "continue",
    )  # fmt: skip
    assert re.search(r"eip +0x102000 +0x102000 <_start>", output)
    assert re.search(r"cs +0xe019", output)
    assert re.search(r"Breakpoint 1, 0x[0-9a-f]+ in puts \(\)", output)
    assert "{0, 0, 0, 0}" in output
    assert "exited normally" in output
    assert guest.console.text.endswith("SUCCESS\n")


def test_watchpoints(debug: Debug) -> None:
    output, _guest = debug(
        "hello", "watch *(long*)&start_info", "continue", "delete", "rwatch *(long*)&start_info", "continue",
        "delete", "awatch *(long*)&start_info", "continue", "delete", "continue",
    )  # fmt: skip
    assert re.search(r"Hardware watchpoint 1: .*\n\nOld value = 0\nNew value = 1101824", output)
    assert re.search(r"Hardware read watchpoint 2: .*\n\nValue = 1101824", output)
    assert re.search(r"Hardware access \(read/write\) watchpoint 3: .*\n\nValue = 1101824", output)
    assert "exited normally" in output


def test_several_vcpus_are_threads(debug: Debug) -> None:
    output, guest = debug(
        "smp32", "break *second_start", "continue", "info threads", "thread 1", "print $pc", "delete",
        "continue", vcpus=2,
    )  # fmt: skip
    assert guest.console.text.endswith("SUCCESS\n")
    assert 'Thread 1.2 "d1v1"' in output


def test_a_session_that_only_looks_changes_nothing() -> None:
    def history(look: bool) -> tuple[str, str, str]:
        with pyhv.Machine(memory="64M", virtual_time=True, seed=7) as machine:
            guest, digest = machine.boot("ticker"), Digest()
            machine.on("exit", digest.exit)
            output = ""
            if look:
                commands = ["info registers", "break *put_dec", *["continue", "bt", "x/4gx $rsp"] * 5]
                commands += ["stepi", "stepi 20", "info threads", "watch *(long*)&start_info"]
                output = debugged(guest, machine, *commands, "delete", "detach")
            machine.run(seconds=20)
            return digest.summary(), guest.console.text, output

    digest, text, output = history(look=True)
    assert output.count("Breakpoint 1, ") == 5
    assert (digest, text) == history(look=False)[:2]
    assert text.endswith("SUCCESS\n")


def test_several_guests_are_inferiors() -> None:
    with pyhv.Machine(memory="64M", virtual_time=True) as machine:
        first, second = machine.boot("hello"), machine.boot("hello32")
        symbols = symbol_file(second.origin)
        told = debugged(
            first, machine, "add-inferior", "inferior 2", "attach 2", "info inferiors", f"file {symbols}",
            "set schedule-multiple on", "break *put_dec", "continue", "info threads", "delete", "continue",
            "continue", extended=True,
        )  # fmt: skip
        assert "process 1" in told
        assert "process 2" in told
        assert 'Thread 2.1 "d2v0" (hello32' in told
        machine.run(seconds=5)
        assert [guest.console.text[-8:] for guest in (first, second)] == ["SUCCESS\n"] * 2


def test_ctrl_c() -> None:
    with pyhv.Machine(memory="64M", virtual_time=True) as machine:
        guest = machine.boot("ping", memory="16M")
        told = debugged(guest, machine, "continue", "info registers rip", "kill", interrupted=0.3)
        assert "Program received signal SIGINT" in told
        assert re.search(r"^rip +0x1", told, re.MULTILINE)
        machine.run(seconds=1)
        assert guest.end is not None
        assert guest.end.reason == "destroyed"
