# SPDX-License-Identifier: GPL-2.0-only
"""Other kernels that Debian packages, unmodified: further builds of Linux, PV-GRUB, GNU Mach.

These fetch packages with apt-get the first time, like `test_debian.py`. The whole list, with all suites, is
docs/compatibility.md.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import compatibility
from bench.compatibility import GRUB, LINUX, Subject
from pyhv.cli.messages import PlainProgress
from pyhv.domain.config import DomainConfig
from pyhv.images import debian, kernels
from pyhv.images.kernels import KERNELS
from pyhv.images.progress import Progress
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.testing.guest_machine import Sink
from pyhv.until import Outcome

pytestmark = pytest.mark.debian

PYHV = str(Path(sys.executable).with_name("pyhv"))
MIB = 256  # pages
PATIENCE_S = 120.0


@pytest.mark.promise("C-6")
def test_the_cloud_kernel_to_its_shell_and_off() -> None:
    def fetch(progress: Progress) -> str:
        return debian.ensure(progress, flavour="cloud").version

    subject = Subject("cloud", ("debian", "--flavour", "cloud"), fetch, LINUX)
    result = compatibility.run(subject, PlainProgress(), PATIENCE_S)
    assert result.is_complete, result
    assert "-cloud-amd64 " in result.proof
    assert not result.complaint


@pytest.mark.promise("C-6")
def test_the_rt_kernel_to_its_first_process() -> None:
    """No further in general: the Linux 6.1.192 build loops in its own irq_work list later, on Xen as well."""
    files = debian.ensure(PlainProgress(), flavour="rt")
    assert "-rt-" in files.version
    console = Sink()
    machine = Machine(MachineConfig(128 * MIB, virtual_time=True))
    machine.create(
        load_image(files.vmlinux), DomainConfig("rt", 128 * MIB), ramdisk=files.initramfs.read_bytes(),
        cmdline=b"console=hvc0 w=boot", console=console,
    )  # fmt: skip
    for _ in range(100):
        if "PYHV-INIT-OK" in console.text or machine.run(timeout_ns=100 * 10**6) is Outcome.ENDED:
            break
    assert "PYHV-INIT-OK" in console.text, console.text[-500:]
    assert "PREEMPT_RT" in console.text
    assert machine.audit() == []
    machine.close()


@pytest.mark.promise("C-6")
@pytest.mark.parametrize(("name", "width"), [("pv-grub", 64), ("pv-grub-32", 32)])
def test_pv_grub_answers_at_its_prompt_and_halts(name: str, width: int) -> None:
    def fetch(progress: Progress) -> str:
        return kernels.ensure(name, KERNELS[name], progress).version

    result = compatibility.run(Subject(name, (name,), fetch, GRUB, width), PlainProgress(), PATIENCE_S)
    assert result.is_complete, result
    assert result.proof.startswith("Usage: halt")


def test_pv_grub_reads_piped_commands() -> None:
    """Bytes that arrive before anybody reads the console wait in the ring."""
    done = subprocess.run(
        [PYHV, "boot", "pv-grub", "--timeout", "60"], input="echo piped\nhalt\n", capture_output=True,
        text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\npiped\n" in done.stdout


@pytest.mark.promise("C-6")
@pytest.mark.parametrize(("name", "reason"), [("gnumach", 252), ("gnumach-32", 128)])
def test_gnu_mach_comes_as_far_as_on_xen(name: str, reason: int) -> None:
    """It panics in its memory set-up and shuts down with the low byte of an address as the reason.

    Genuine Xen records 252 for the 64-bit kernel, for a fault at the same instruction.
    """
    done = subprocess.run(
        [PYHV, "boot", name, "--timeout", "60"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 5, done.stderr
    assert f"{name} ended itself: reason {reason}," in done.stderr


def test_the_later_gnu_mach_is_refused_as_by_xen() -> None:
    later = replace(KERNELS["gnumach"], package="gnumach-image-1.8-xen-amd64", suite="trixie")
    path = kernels.ensure("gnumach-later", later, PlainProgress()).path
    done = subprocess.run([PYHV, "boot", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert "VIRT_BASE 0x40000000" in done.stderr


def test_a_kernel_of_another_suite_boots() -> None:
    """Linux 6.12 with its zstd payload, and busybox of the same suite."""
    subject = next(one for one in compatibility.subjects() if one.name == "Linux, trixie, stock")
    result = compatibility.run(subject, PlainProgress(), PATIENCE_S)
    assert result.is_complete, result
    assert "deb13" in result.proof
