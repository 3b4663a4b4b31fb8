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
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.images import debian
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.testing.guest_machine import Sink
from pyhv.until import Outcome

pytestmark = pytest.mark.debian

PYHV = str(Path(sys.executable).with_name("pyhv"))
MIB = 256  # pages


@pytest.fixture(scope="session")
def files() -> debian.DebianFiles:
    return debian.ensure(PlainProgress())


def boot(
    files: debian.DebianFiles, *, vcpus: int = 1, cmdline: bytes = b"console=hvc0 quiet w=boot"
) -> tuple[Machine, Domain, Sink]:
    console = Sink()
    machine = Machine(MachineConfig(128 * MIB, virtual_time=True))
    config = DomainConfig("debian", 128 * MIB, vcpus=vcpus)
    image = load_image(files.vmlinuz)
    ramdisk = files.initramfs.read_bytes()
    domain = machine.create(image, config, ramdisk=ramdisk, cmdline=cmdline, console=console)
    return machine, domain, console


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
def test_two_vcpus(files: debian.DebianFiles) -> None:
    machine, domain, console = boot(files, vcpus=2, cmdline=b"console=hvc0 w=boot")
    assert machine.run(timeout_ns=120 * 10**9) is Outcome.ENDED
    assert not domain.life.crashed
    assert "smp: Brought up 1 node, 2 CPUs" in console.text
    assert "PYHV-INIT-OK" in console.text
    machine.close()


@pytest.mark.promise("C-11")
def test_nmis_reach_the_other_cpu(files: debian.DebianFiles) -> None:
    """sysrq-l asks every other CPU for a backtrace by an NMI; without an APIC in CPUID Linux has none."""
    machine, domain, console = boot(files, vcpus=2, cmdline=b"console=hvc0")
    while "/ # " not in console.text:
        assert machine.run(timeout_ns=100 * 10**6) is Outcome.TIMEOUT
    began = machine.clock.now()
    for command in ("echo l >/proc/sysrq-trigger; echo D''ONE", "grep NMI: /proc/interrupts", "poweroff -f"):
        machine.input(domain, f"{command}\n".encode())
    assert machine.run(timeout_ns=began + 20 * 10**9) is Outcome.ENDED
    text = console.text
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
    machine.close()


@pytest.mark.promise("I-3")
def test_memory_is_sound_during_and_after_a_boot(files: debian.DebianFiles) -> None:
    machine, _domain, console = boot(files, cmdline=b"console=hvc0 quiet w=fork")
    before = machine.frames.free_count
    audited = 0
    while machine.run(timeout_ns=400 * 10**6) is Outcome.TIMEOUT:
        assert machine.audit() == []
        audited += 1
        assert audited < 1000
    assert audited > 5
    assert "PYHV-END fork" in console.text
    assert machine.audit() == []
    assert machine.frames.free_count > before
    machine.close()


def test_a_guest_is_asked_to_stop(files: debian.DebianFiles) -> None:
    machine, domain, console = boot(files, cmdline=b"console=hvc0 quiet")
    while "PYHV-INIT-OK" not in console.text:
        assert machine.run(timeout_ns=100 * 10**6) is Outcome.TIMEOUT
    machine.shutdown(domain, "poweroff")
    assert machine.run(timeout_ns=60 * 10**9) is Outcome.ENDED
    assert not domain.life.crashed
    machine.close()


def test_the_guest_sees_what_a_xen_guest_sees(files: debian.DebianFiles) -> None:
    """dmesg of a healthy PV guest, and none of the kernel's complaints."""
    machine, _domain, console = boot(files, cmdline=b"console=hvc0 w=boot")
    assert machine.run(timeout_ns=120 * 10**9) is Outcome.ENDED
    for line in ("Hypervisor detected: Xen PV", "Xen version: 4.17", "Grant table initialized"):
        assert re.search(line, console.text, re.IGNORECASE), line
    for complaint in ("BUG:", "WARNING:", "Oops", "Call Trace", "rcu: INFO", "soft lockup"):
        assert complaint not in console.text
    machine.close()


@pytest.mark.promise("C-5")
@pytest.mark.parametrize("choice", ["", "xen.fifo_events=0"])
def test_both_ways_to_deliver_events(files: debian.DebianFiles, choice: str) -> None:
    machine, domain, console = boot(files, cmdline=b"console=hvc0 w=boot " + choice.encode())
    assert machine.run(timeout_ns=120 * 10**9) is Outcome.ENDED
    assert not domain.life.crashed
    assert f"Using {'2-level' if choice else 'FIFO-based'} ABI" in console.text
    assert "PYHV-INIT-OK" in console.text
    machine.close()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_suspended_guest_is_resumed(files: debian.DebianFiles, vcpus: int) -> None:
    machine, domain, console = boot(files, vcpus=vcpus, cmdline=b"console=hvc0 quiet")
    while "PYHV-INIT-OK" not in console.text:
        assert machine.run(timeout_ns=100 * 10**6) is Outcome.TIMEOUT
    machine.shutdown(domain, "suspend")
    assert machine.run(timeout_ns=60 * 10**9) is Outcome.ENDED
    assert domain.suspended
    assert machine.audit() == []
    machine.resume(domain, cancelled=True)
    assert machine.run(timeout_ns=10**9) is Outcome.TIMEOUT
    machine.input(domain, b"echo a''live; poweroff -f\n")
    assert machine.run(timeout_ns=60 * 10**9) is Outcome.ENDED
    assert not domain.suspended
    assert "alive" in console.text
    machine.close()
