# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin's fixtures and markers, and what a failed test tells; each as pytest itself prints it."""

import os
import re
import signal
import subprocess
import sys
import time
from textwrap import dedent

import pytest
from plugin_sessions import LIGHT

pytest_plugins = ["pytester"]

SPINNER = '''
import pytest
SPINNER = """
.include "xen.inc"
.include "kernel.inc"
.text
_start:
    kernel_entry
    print "spinning\\\\n"
spin:
    jmp spin
"""
'''


SLEEPER = """
SLEEPER = SPINNER.replace("jmp spin", '''
    mov edi, VCPUOP_stop_periodic_timer
    xor esi, esi
    xor edx, edx
    hypercall vcpu_op
again:
    mov edi, SCHEDOP_poll
    lea rsi, [rip + request]
    hypercall sched_op
    jmp again
.data
.balign 8
request:
    .quad 0
    .quad 0
    .quad 3600000000000
''')
"""


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    """Run the tests in `source` in this process."""
    pytester.makepyfile(SPINNER + SLEEPER + dedent(source))
    return pytester.runpytest_inprocess(*LIGHT, *arguments)


def test_guests_as_the_markers_say(pytester: pytest.Pytester) -> None:
    (pytester.path / "mine.S").write_text(
        '.include "xen.inc"\n.include "kernel.inc"\n'
        '.text\n_start:\n kernel_entry\n print "mine\\n"\n succeed\n'
    )
    done = run(
        pytester,
        """
        @pytest.mark.guest("hello", memory="8M", name="first")
        def test_by_name(guest, pyhv_machine):
            assert (guest.name, pyhv_machine.guests) == ("first", [guest])
            assert guest.wait().reason == "poweroff"
            assert "SUCCESS" in guest.console.text

        @pytest.mark.guest("mine.S")
        def test_by_path(guest):
            guest.expect("mine")

        @pytest.mark.guest(SPINNER)
        def test_from_source(guest):
            guest.expect("spinning")

        @pytest.mark.guest("ping")
        @pytest.mark.guest("pong", vcpus=2)
        def test_several(guests, guest, pyhv_machine):
            assert [one.name for one in guests] == ["ping", "pong"]
            assert guest is guests[0]
            assert [len(one.vcpus) for one in guests] == [1, 2]
            pyhv_machine.run()
            assert all("SUCCESS" in one.console.text for one in guests)

        @pytest.mark.guest("ticker", ready="tick 3")
        def test_ready(guest):
            assert "tick 3" in guest.console.text
            assert "tick 4" not in guest.console.text

        @pytest.mark.pyhv_machine(memory="64M", virtual_time=False)
        def test_a_machine_alone(pyhv_machine):
            assert not pyhv_machine.virtual_time
            assert pyhv_machine.boot("hello").wait().reason == "poweroff"

        @pytest.mark.guest("ticker")
        class TestNearest:
            def test_of_the_class(self, guest):
                assert guest.name == "ticker"

            @pytest.mark.guest("hello")
            def test_of_the_function(self, guests):
                assert [one.name for one in guests] == ["hello"]
        """,
    )
    done.assert_outcomes(passed=8)


def test_a_booted_guest_is_put_back(pytester: pytest.Pytester) -> None:
    done = run(
        pytester,
        """
        pytestmark = pytest.mark.guest("ticker", ready="tick 2")
        machines = []

        @pytest.mark.parametrize("time", range(3))
        def test_from_there(booted_guest, pyhv_machine, time):
            machines.append(pyhv_machine)
            assert booted_guest.end is None
            assert "tick 3" not in booted_guest.console.text
            booted_guest.wait()
            extra = pyhv_machine.boot("hello") if time == 0 else None
            assert [one.name for one in pyhv_machine.guests] == (["hello"] if extra else [])

        @pytest.mark.guest("ticker", ready="tick 2", memory="8M")
        def test_another_one(booted_guests, pyhv_machine):
            assert pyhv_machine is not machines[0]

        def test_booted_once():
            assert len(machines) == 3 and len(set(machines)) == 1
        """,
    )
    done.assert_outcomes(passed=5)


def test_what_makes_no_sense_is_said_in_a_sentence(pytester: pytest.Pytester) -> None:
    done = run(
        pytester,
        """
        @pytest.mark.guest("nothing")
        def test_1(guest): ...

        def test_2(guest): ...

        @pytest.mark.guest("hello", colour=1)
        def test_3(guest): ...

        @pytest.mark.guest("hello", memory="lots")
        def test_4(guest): ...

        @pytest.mark.guest("hello")
        def test_5(booted_guest): ...

        @pytest.mark.guest("hello", ready="x")
        def test_6(guest, booted_guest): ...

        @pytest.mark.pyhv_machine(cores=4)
        def test_7(pyhv_machine): ...

        @pytest.mark.guest
        def test_8(guest): ...
        """,
    )
    done.assert_outcomes(errors=8)
    for sentence in (
        "nothing: there is no such file, and no guest of that name*",
        "the test has no @pytest.mark.guest(...) that says what to boot*",
        "@pytest.mark.guest has no argument 'colour'; there are append, *",
        "'lots' is no amount of memory; *",
        "booted_guest needs to know when it has booted: *",
        "a test uses either guest or booted_guest: *",
        "@pytest.mark.pyhv_machine has no argument 'cores'; there are *",
        "@pytest.mark.guest needs one image: *",
    ):
        done.stdout.fnmatch_lines([sentence])
    assert not re.search("Traceback|During handling", done.stdout.str())


def test_a_failure_tells_of_its_guests(pytester: pytest.Pytester) -> None:
    done = run(
        pytester,
        """
        CRASHER = SPINNER.replace("jmp spin", "mov rax, [0x123456789a0]")

        @pytest.mark.guest(CRASHER)
        def test_of_one_that_crashes(guest):
            assert guest.wait().reason == "poweroff"

        @pytest.mark.guest("ticker")
        def test_of_one_that_lives(guest):
            guest.expect("tick 1")
            assert False

        @pytest.mark.guest("hello")
        def test_that_waits_in_vain(guest):
            guest.expect("goodbye")

        @pytest.mark.guest("ticker", ready="no tick")
        def test_of_a_boot_that_fails(booted_guest): ...
        """,
        "--pyhv-seed=77",
    )
    done.assert_outcomes(failed=3, errors=1)
    done.stdout.fnmatch_lines(
        [
            "ticker has not printed 'no tick': *",
            "*- pyhv: ticker -*",
            "*- pyhv: the same run again -*",
            "pytest test_a_failure_tells_of_its_guests.py::test_of_a_boot_that_fails --pyhv-seed=77",
            "*- pyhv: guest -*",
            "guest (domain 1, ---sc-) on a machine in virtual time, 0.* s old, seed 77",
            "Domain 1 (guest) crashed at 0.*",
            "=> *mov*rax, *",
            "Last exits (newest last):",
            "The end of its console:",
            "  spinning",
            "*- pyhv: the same run again -*",
            "pytest test_a_failure_tells_of_its_guests.py::test_of_one_that_crashes --pyhv-seed=77",
            "vCPU 0 is * at 0x*, *sleep*",
            "Last exits (newest last):",
            "    tick 1 after * us",
            '>*guest.expect("goodbye")',
            "E *hello has not printed 'goodbye': it has ended (poweroff); the end of its console:",
            "It has ended: poweroff",
        ]
    )
    assert "is_there" not in done.stdout.str(), "pyhv's own lines are not shown"


def test_a_guest_that_hangs_fails_its_test(pytester: pytest.Pytester) -> None:
    done = run(
        pytester,
        """
        @pytest.mark.guest(SPINNER)
        def test_in_virtual_time(guest):
            guest.wait(timeout=1e6)

        @pytest.mark.guest(SLEEPER)
        @pytest.mark.pyhv_machine(virtual_time=False)
        def test_in_real_time_while_it_sleeps(guest):
            guest.wait(timeout=1e6)

        @pytest.mark.guest("hello")
        def test_the_session_goes_on(guest):
            guest.wait()
        """,
        "--pyhv-timeout=0.5",
    )
    done.assert_outcomes(failed=2, passed=1)
    done.stdout.fnmatch_lines(["E *GuestHung: guest: still busy after 0.5 s on the wall (--pyhv-timeout)"])
    done.stdout.fnmatch_lines(["vCPU 0 is running at 0x*, spin+0x0*"])


def test_options_and_ini(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npyhv_seed = 5\npyhv_timeout = 7\n")
    source = """
        def test_it(pyhv_machine):
            print("seed", pyhv_machine.seed, "patience", pyhv_machine._patience.seconds)
        """
    assert "seed 5 patience 7.0" in run(pytester, source, "-s").stdout.str()
    assert (
        "seed 6 patience 0.0" in run(pytester, source, "-s", "--pyhv-seed=6", "--pyhv-timeout=0").stdout.str()
    )
    chosen = run(pytester, source, "-s", "--pyhv-seed=random").stdout.str()
    header = re.search(r"^pyhv: seed (\d+)$", chosen, re.MULTILINE)
    assert header is not None
    assert f"seed {header[1]} patience" in chosen
    for option in ("--pyhv-seed=x", "--pyhv-timeout=-1", "--pyhv-timeout=nan"):
        wrong = run(pytester, source, option)
        assert wrong.ret == pytest.ExitCode.USAGE_ERROR
        assert "is wanted" in wrong.stderr.str()


def test_s_streams_consoles(pytester: pytest.Pytester) -> None:
    source = """
        @pytest.mark.guest("ticker", name="one")
        def test_it(guest):
            guest.wait()
        """
    shown = run(pytester, source, "-s").stdout
    shown.fnmatch_lines(["one|   tick 1 after * us", "one| SUCCESS"])
    assert "one|" not in run(pytester, source).stdout.str()


def test_pyhv_is_not_imported_for_others(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_it():
            loaded = {name for name in sys.modules if name.startswith("pyhv.")}
            assert "pyhv.testing.plugin" in loaded
            parts = ("frozen", "lane", "version", "testing")
            assert not [name for name in loaded if name.split(".")[1] not in parts]
            assert not {"unicorn", "numpy", "click", "capstone"} & set(sys.modules)
        """
    )
    done = pytester.runpytest_subprocess(*LIGHT)
    done.assert_outcomes(passed=1)


def test_workers_have_their_own_and_tell_of_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.guest("ticker", ready="tick 2")
        @pytest.mark.parametrize("number", range(4))
        def test_it(booted_guest, pyhv_machine, number):
            assert pyhv_machine.seed
            booted_guest.wait()
            assert number != 3
        """
    )
    done = pytester.runpytest_subprocess(*LIGHT, "-n", "2", "--pyhv-seed=random")
    done.assert_outcomes(passed=3, failed=1)
    told = ["*- pyhv: ticker -*", "*It has ended: poweroff*", "pytest *test_it?3?* --pyhv-seed=*"]
    done.stdout.fnmatch_lines(told)


@pytest.mark.parametrize("virtual", [True, False], ids=["virtual", "real"])
def test_ctrl_c_ends_the_session(pytester: pytest.Pytester, virtual: bool) -> None:
    """And nothing is left: the process ends by itself, with pytest's own code for it."""
    pytester.makepyfile(
        SPINNER
        + f"""
@pytest.mark.pyhv_machine(virtual_time={virtual})
@pytest.mark.guest(SPINNER)
def test_it(guest):
    print("begun", flush=True)
    guest.wait(timeout=1e6)
"""
    )
    command = [sys.executable, "-m", "pytest", "-s", *LIGHT]
    with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "spinning" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == pytest.ExitCode.INTERRUPTED


def test_ctrl_c_leaves_no_worker(pytester: pytest.Pytester) -> None:
    """As a terminal sends it: to all processes in the foreground."""
    pytester.makepyfile(
        SPINNER
        + """
import pathlib

@pytest.mark.guest(SPINNER)
@pytest.mark.parametrize("number", range(2))
def test_it(guest, number):
    guest.expect("spinning")
    pathlib.Path("begun").touch()
    guest.wait(timeout=1e6)
"""
    )
    command = [sys.executable, "-m", "pytest", *LIGHT, "-n", "2"]
    with subprocess.Popen(
        command, cwd=pytester.path, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (pytester.path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == pytest.ExitCode.INTERRUPTED
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a worker lives on")
