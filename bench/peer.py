# SPDX-License-Identifier: GPL-2.0-only
"""The peer: Xen itself under QEMU's emulation of a processor (TCG), with the same kernel as its dom0.

dom0 is a PV guest like pyhv's, on the same ABI, so that the only difference is who provides it. Xen prints to
a serial port, and dom0's console comes out of the same port. QEMU is told to emulate, never to use the
host's virtualization. Xen and the kernel are handed over by QEMU as a Multiboot kernel and its modules.

Beside it, for an idea of what Xen costs: the same emulator with the same kernel and no Xen at all.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.timeline import Timeline, watch
from pyhv.errors import EnvironmentProblem

QEMU = "qemu-system-x86_64"
XEN_MIB = 256
"""What Xen has beside dom0's memory."""


def require_qemu() -> str:
    """QEMU's version line. Raises EnvironmentProblem if it is not installed."""
    if shutil.which(QEMU) is None:
        raise EnvironmentProblem(
            f"{QEMU} is not installed, and the peer runs in it: 'apt-get install qemu-system-x86' as root"
        )
    answer = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0]


def _qemu(memory_mib: int) -> list[str]:
    """What both have in common: one emulated processor, and a serial port for a console."""
    return [
        QEMU, "-accel", "tcg", "-m", str(memory_mib), "-smp", "1", "-cpu", "qemu64",
        "-display", "none", "-vga", "none", "-nic", "none", "-no-reboot", "-monitor", "none",
        "-serial", "stdio",
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Peer:
    """Xen with dom0 under QEMU."""

    xen: Path
    kernel: Path
    initramfs: Path
    memory_mib: int
    label: str = "peer"
    guest_clock_is_real: bool = True

    def run(self, workload: str, timeout_s: float) -> Timeline:
        """Boot once with `w=workload`. Raises EnvironmentProblem."""
        with tempfile.TemporaryDirectory(prefix="pyhv-bench-") as name:
            # Modules are named in one string, in which commas and spaces have a meaning: use our own names.
            for link, target in (("xen", self.xen), ("kernel", self.kernel), ("initramfs", self.initramfs)):
                Path(name, link).symlink_to(target.resolve())
            return watch(self.command(workload), Path(name), timeout_s)

    def command(self, workload: str) -> list[str]:
        """QEMU's command line, for a directory that holds `xen`, `kernel` and `initramfs`."""
        memory = self.memory_mib
        return [
            *_qemu(memory + XEN_MIB),
            "-kernel", "xen",
            # Xen takes the first word for its own name.
            "-append", f"placeholder console=com1 com1=115200,8n1 dom0_mem={memory}M,max:{memory}M"
            " loglvl=all guest_loglvl=all noreboot=0",
            "-initrd", f"kernel console=hvc0 w={workload},initramfs",
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alone:
    """The kernel under QEMU, without Xen: no paravirtualization, but an emulated processor of its own."""

    kernel: Path
    initramfs: Path
    memory_mib: int
    label: str = "QEMU alone"
    guest_clock_is_real: bool = True

    def run(self, workload: str, timeout_s: float) -> Timeline:
        """Boot once with `w=workload`. Raises EnvironmentProblem."""
        return watch(self.command(workload), self.kernel.parent, timeout_s)

    def command(self, workload: str) -> list[str]:
        """QEMU's command line."""
        return [
            *_qemu(self.memory_mib),
            "-kernel", str(self.kernel.resolve()),
            "-append", f"console=ttyS0 w={workload}",
            "-initrd", str(self.initramfs.resolve()),
        ]  # fmt: skip
