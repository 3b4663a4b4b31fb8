# SPDX-License-Identifier: GPL-2.0-only
"""Debian's stock kernel, end to end, through the command line and through the Python API.

These fetch two packages with apt-get the first time. `make test` leaves them out; `make debian` and CI
run them.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from pyhv.cli.messages import PlainProgress
from pyhv.images import debian
from pyhv.testing.under_test import GuestUnderTest, MachineUnderTest
from pyhv.until import Outcome

pytestmark = pytest.mark.debian

PYHV = str(Path(sys.executable).with_name("pyhv"))


@pytest.fixture(scope="session")
def files() -> debian.DebianFiles:
    return debian.ensure(PlainProgress())


@pytest.fixture
def guest(guests: list[GuestUnderTest]) -> GuestUnderTest:
    """The plugin's, in the place of the paused one of other tests."""
    return guests[0]


@pytest.fixture
def shell(files: debian.DebianFiles) -> Iterator[pexpect.spawn]:
    child = pexpect.spawn(PYHV, ["boot", "debian", "--append", "quiet"], timeout=120, encoding="utf-8")
    child.expect("/ # ")
    yield child
    child.close(force=True)


@pytest.mark.promise("C-5")
def test_an_interactive_shell_on_a_terminal(shell: pexpect.spawn) -> None:
    shell.sendline("cat /sys/hypervisor/type")
    shell.expect(r"\nxen\r")
    shell.expect("/ # ")
    shell.sendline("uname -r; grep -c ^processor /proc/cpuinfo")
    shell.expect(r"6\.\d+\.\d+-\d+-amd64\r+\n1\r")
    shell.sendline("echo sleeping; sleep 100")
    shell.expect(r"\nsleeping\r")
    time.sleep(1)  # until sleep is the foreground process
    shell.sendintr()  # job control: the guest's terminal gets the Ctrl-C, not pyhv
    shell.expect("/ # ")
    shell.sendline("poweroff -f")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 0


def test_ctrl_right_bracket_leaves(shell: pexpect.spawn) -> None:
    shell.send("\x1d")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 130


def test_from_files_with_piped_input(files: debian.DebianFiles) -> None:
    command = [PYHV, "boot", str(files.vmlinuz), "--ramdisk", str(files.initramfs)]
    command += ["--append", "console=hvc0 quiet", "--memory", "128"]
    done = subprocess.run(
        command, input="cat /sys/hypervisor/type\npoweroff -f\n", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^xen\s*$", done.stdout, re.MULTILINE)


@pytest.mark.promise("T-1", "P-4")
def test_virtual_time_repeats_to_the_byte(files: debian.DebianFiles, tmp_path: Path) -> None:
    """Also on an emulator whose hot paths are as they were."""
    outputs = []
    for name, more in (("first", []), ("second", []), ("plain", ["--no-engine-tuning"])):
        digest = tmp_path / name
        command = [PYHV, "boot", "debian", "--append", "w=boot", "--virtual-time", "--seed", "1"]
        command += ["--digest", str(digest), "--console", "stdio", *more]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        outputs.append((done.stdout, digest.read_text()))
    assert b"PYHV-INIT-OK" in outputs[0][0]
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.promise("C-5")
@pytest.mark.guest("debian", vcpus=2, append="w=boot", ready=None)
def test_two_vcpus(guest: GuestUnderTest) -> None:
    assert guest.wait(120).reason == "poweroff"
    assert "smp: Brought up 1 node, 2 CPUs" in guest.console.text
    assert "PYHV-INIT-OK" in guest.console.text


@pytest.mark.promise("C-11")
@pytest.mark.guest("debian", vcpus=2)
def test_nmis_reach_the_other_cpu(booted_guest: GuestUnderTest) -> None:
    """sysrq-l asks every other CPU for a backtrace by an NMI; without an APIC in CPUID Linux has none."""
    for command in ("echo l >/proc/sysrq-trigger; echo D''ONE", "grep NMI: /proc/interrupts", "poweroff -f"):
        booted_guest.send(f"{command}\n")
    assert booted_guest.wait(20).reason == "poweroff"
    text = booted_guest.console.text
    asked = re.search(r"Sending NMI from CPU (\d) to CPUs (\d):", text)
    assert asked is not None
    assert re.search(rf"NMI backtrace for cpu {asked[2]}\b", text)
    counts = re.search(r"NMI: +(\d+) +(\d+)", text)
    assert counts is not None
    assert int(counts[1 + int(asked[2])]) >= 1
    shown = re.findall(r"\[ *(\d+\.\d+)\] (?:Sending NMI|NMI backtrace for cpu)", text)
    assert float(shown[-1]) - float(shown[0]) < 1, "at once"
    assert "DONE" in text
    assert "Firmware Bug" not in text
    assert "Hardware Error" not in text


@pytest.mark.promise("I-3")
@pytest.mark.guest("debian", append="quiet w=fork", ready=None)
def test_memory_is_sound_during_and_after_a_boot(
    guest: GuestUnderTest, pyhv_machine: MachineUnderTest
) -> None:
    frames = pyhv_machine.hypervisor.frames
    before = frames.free_count
    audited = 0
    while pyhv_machine.run(seconds=0.4) is Outcome.TIMEOUT:
        assert pyhv_machine.audit() == []
        audited += 1
        assert audited < 1000
    assert audited > 5
    assert "PYHV-END fork" in guest.console.text
    assert pyhv_machine.audit() == []
    assert frames.free_count > before


@pytest.mark.guest("debian", append="quiet")
def test_a_guest_is_asked_to_stop(booted_guest: GuestUnderTest) -> None:
    booted_guest.shutdown()
    assert booted_guest.wait().reason == "poweroff"


@pytest.mark.guest("debian", append="w=boot", ready=None)
def test_the_guest_sees_what_a_xen_guest_sees(guest: GuestUnderTest) -> None:
    """dmesg of a healthy PV guest, and none of the kernel's complaints."""
    assert guest.wait(120).reason == "poweroff"
    for line in ("Hypervisor detected: Xen PV", "Xen version: 4.17", "Grant table initialized"):
        assert re.search(line, guest.console.text, re.IGNORECASE), line
    for complaint in ("BUG:", "WARNING:", "Oops", "Call Trace", "rcu: INFO", "soft lockup"):
        assert complaint not in guest.console.text


@pytest.mark.promise("C-5")
@pytest.mark.parametrize(
    "abi",
    [
        pytest.param("FIFO-based", marks=pytest.mark.guest("debian", append="w=boot", ready=None)),
        pytest.param(
            "2-level",
            marks=pytest.mark.guest("debian", append="w=boot xen.fifo_events=0", ready=None),
        ),
    ],
)
def test_both_ways_to_deliver_events(guest: GuestUnderTest, abi: str) -> None:
    assert guest.wait(120).reason == "poweroff"
    assert f"Using {abi} ABI" in guest.console.text
    assert "PYHV-INIT-OK" in guest.console.text


@pytest.mark.parametrize(
    "vcpus",
    [
        pytest.param(1, marks=pytest.mark.guest("debian", append="quiet")),
        pytest.param(2, marks=pytest.mark.guest("debian", append="quiet", vcpus=2)),
    ],
)
def test_a_suspended_guest_is_resumed(
    booted_guest: GuestUnderTest, pyhv_machine: MachineUnderTest, vcpus: int
) -> None:
    assert len(booted_guest.vcpus) == vcpus
    booted_guest.suspend()
    assert pyhv_machine.run(seconds=60) is Outcome.ENDED
    assert booted_guest.suspended
    assert pyhv_machine.audit() == []
    booted_guest.resume()
    assert pyhv_machine.run(seconds=1) is Outcome.TIMEOUT
    booted_guest.send("echo a''live; poweroff -f\n")
    assert booted_guest.wait().reason == "poweroff"
    assert "alive" in booted_guest.console.text
