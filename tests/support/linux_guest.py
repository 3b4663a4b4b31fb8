# SPDX-License-Identifier: GPL-2.0-only
"""C programs inside Debian's Linux on pyhv: compile them, boot a guest that has them, run commands in it.

    reuse = compile_program(PROGRAMS / "reuse.c", Width.BITS64)
    with LinuxGuest(Setup(vcpus=2), {"reuse": reuse}, directory) as guest:
        ran = guest.run("/programs/reuse 400")
        assert ran.status == 0, ran.output
        guest.power_off()

The guest is `pyhv boot` as a process of its own, as a user starts it, with a pipe for its keyboard and one
for its console. Its ramdisk is the initramfs of `pyhv boot debian` with a second cpio archive behind it;
Linux unpacks one after the other into the same tree. In the guest the script `serve` reads numbered commands
from the console, runs each in a shell of its own, and ends its output with a line that has the number and the
status, so that output and status are found whatever else the console shows.

A guest or a pyhv that dies, or is silent for too long, raises GuestLost, whose text has the end of the
console and pyhv's own last words. The next `run` boots a fresh guest: one test's crash is one test's failure.
"""

import enum
import functools
import gzip
import hashlib
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from pyhv.cli.messages import PlainProgress
from pyhv.images import archive, debian
from pyhv.loader.cpio import CpioWriter

PROGRAMS = Path(__file__).with_name("programs")
PYHV = str(Path(sys.executable).with_name("pyhv"))
BUILT = Path(__file__).parents[2] / "build" / "programs"
"""Where compiled programs are kept, each under a name that has the hash of everything it was made from."""

BOOT_SECONDS = 180
PATIENCE = 3
"""How many times the time that a command has in the guest may pass on the wall: virtual time is slower."""
TAIL_LINES = 40

SERVE = """\
# Reads "NUMBER SECONDS COMMAND" and answers with the command's output and "@@ NUMBER STATUS".
stty -echo
mkdir -p /dev/pts /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
cd /tmp
printf '\\n@@ %s %s\\n' 0 0
while read -r number seconds line; do
    timeout -s KILL "$seconds" sh -c "$line" </dev/null 2>&1
    status=$?
    kill -KILL -1  # whatever a command has left behind; process 1 and this shell are spared
    printf '\\n@@ %s %s\\n' "$number" "$status"
done
poweroff -f
"""


class Width(enum.Enum):
    """What a program is compiled for, and what it needs of gcc."""

    BITS64 = ()
    BITS32 = ("-m32", "-no-pie", "-msse2")

    def __str__(self) -> str:
        return "64" if self is Width.BITS64 else "32"


@dataclass(frozen=True)
class Setup:
    """How a guest is booted: number of vCPUs, clock, engine with or without its tuning, kernel options."""

    vcpus: int = 1
    virtual: bool = False
    tuned: bool = True
    append: str = ""
    memory: int = 256
    """MiB"""

    def __str__(self) -> str:
        clock = "virtual" if self.virtual else "real"
        words = (f"{self.vcpus}cpu", clock, "tuned" if self.tuned else "plain", *self.append.split())
        return "-".join(words)


@dataclass(frozen=True)
class Ran:
    """What a command answered: its status as the shell gives it, standard output and error as they came."""

    status: int
    output: str

    def lines(self, pattern: str) -> list[str]:
        """The lines of the output in which `pattern` is found."""
        return [line for line in self.output.splitlines() if re.search(pattern, line)]


class GuestLost(AssertionError):
    """The guest or pyhv itself is gone, or has not answered in time."""


def kernel_modules(names: Sequence[str]) -> dict[str, Path]:
    """Modules of the kernel that the guests boot, from Debian's package: files by their names with .ko.

    `names` are paths below lib/modules/VERSION/kernel, without .ko.
    """
    version = debian.ensure(PlainProgress()).version
    ready = BUILT / f"modules-{version}-{hashlib.sha256(repr(sorted(names)).encode()).hexdigest()[:8]}"
    if not ready.is_dir():
        BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT) as name:
            scratch = Path(name)
            os.chmod(scratch, 0o755)  # apt, if run by root, downloads as its own user
            archive.Archive().download([f"linux-image-{version}:amd64"], scratch, PlainProgress())
            package = archive.only_package(scratch, "linux-image-")
            members = [f"./lib/modules/{version}/kernel/{module}.ko" for module in names]
            found = scratch / "found"
            found.mkdir()
            with subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
            ) as unpacking:
                command = ["tar", "-x", "--strip-components=6", "-C", str(found), *members]
                subprocess.run(command, stdin=unpacking.stdout, check=True)
            archive.publish(found, ready, is_complete=True)
    files = [f"{Path(name).name}.ko" for name in names]
    return {file: next(ready.rglob(file)) for file in files}


@functools.cache
def compiler(*widths: Width) -> str:
    """gcc, able to make static programs for `widths`; skips the test, or in CI fails it, where it cannot."""
    gcc = shutil.which("gcc")
    for width in widths:
        trial = [gcc or "gcc", *width.value, "-static", "-x", "c", "-", "-o", os.devnull]
        if gcc and not subprocess.run(trial, input=b"int main(void) {}", capture_output=True).returncode:
            continue
        sentence = f"no compiler for static {width}-bit programs here: apt install gcc gcc-multilib libc6-dev"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    assert gcc
    return gcc


def compile_program(source: Path, width: Width = Width.BITS64, *options: str) -> Path:
    """The static program made from one C file: compiled once, then taken from where it is kept."""
    gcc = compiler(width)
    flags = ["-O1", "-g0", "-Wall", "-Werror", "-static", *width.value]
    headers = b"".join(path.read_bytes() for path in sorted(source.parent.glob("*.h")))
    recipe = source.read_bytes() + headers + repr((flags, options, source.name)).encode()
    target = BUILT / f"{source.stem}{width}-{hashlib.sha256(recipe).hexdigest()[:16]}"
    if not target.is_file():
        BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT) as scratch:
            made = Path(scratch) / "made"
            command = [gcc, *flags, str(source), "-o", str(made), "-pthread", *options, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
            made.replace(target)
    return target


def ramdisk(files: debian.DebianFiles, programs: Mapping[str, Path]) -> bytes:
    """Debian's initramfs, and behind it an archive with `serve` and each of `programs` below /programs.

    It is not compressed: the guest would unpack it on an emulated processor.
    """
    extra = CpioWriter()
    extra.file("programs/serve", SERVE.encode(), 0o755)
    for name, path in sorted(programs.items()):
        extra.file(f"programs/{name}", path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)
    return gzip.decompress(files.initramfs.read_bytes()) + extra.finish()


class LinuxGuest:
    """A booted guest, as a context manager; `run` gives it commands, and boots it if it is not up.

    `directory` holds the ramdisk, which may be large, and what pyhv says on standard error.
    """

    def __init__(self, setup: Setup, programs: Mapping[str, Path], directory: Path) -> None:
        self.setup = setup
        self._programs = dict(programs)
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = bytearray()
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def run(self, command: str, seconds: float = 60) -> Ran:
        """One line of shell, killed (status 137) after `seconds` of the guest's time.

        If PATIENCE times as long and a little more has passed on the wall, the guest counts as lost.
        """
        assert "\n" not in command, "one line at a time"
        assert len(command) < 3900, "longer than a terminal's line"  # N_TTY keeps 4095 bytes
        if self._process is None:
            self._boot()
        self._number += 1
        self._type(f"{self._number} {seconds:g} {command}\n")
        return self._answer(PATIENCE * (seconds + 10))

    def complaints(self) -> list[str]:
        """The lines of dmesg by which the kernel says that something is wrong with it."""
        found = self.run(r"dmesg | grep -E 'BUG[: ]|WARNING:|Oops|Call Trace|rcu: INFO|lockup|bad page'")
        return found.output.split("\n") if found.status == 0 else []

    def power_off(self) -> None:
        """End the guest as a user does; raises GuestLost unless pyhv ends with exit code 0."""
        if self._process is None:
            return
        self._number += 1
        self._type(f"{self._number} 60 poweroff -f\n")
        deadline = time.monotonic() + 60
        while self._read(deadline):
            pass
        if self._process is not None and self._process.wait() != 0:
            raise self._lost(f"pyhv ended with exit code {self._process.returncode} after poweroff")
        self._kill()

    def _boot(self) -> None:
        files = debian.ensure(PlainProgress())
        image = self._directory / "ramdisk"
        if not image.exists():
            image.write_bytes(ramdisk(files, self._programs))
        command = [PYHV, "boot", str(files.vmlinux), "--ramdisk", str(image), "--console", "stdio"]
        command += ["--vcpus", str(self.setup.vcpus), "--memory", str(self.setup.memory)]
        command += ["--append", f"console=hvc0 quiet {self.setup.append}".rstrip()]
        command += ["--virtual-time"] if self.setup.virtual else []
        environment = dict(os.environ)
        if not self.setup.tuned:
            environment["PYHV_ENGINE_TUNING"] = "0"
        self._seen.clear()
        self._number = 0
        with (self._directory / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment
            )
        self._expect(rb"/ # ", BOOT_SECONDS)
        self._type("exec sh /programs/serve\n")
        self._answer(BOOT_SECONDS)

    def _type(self, text: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._lost("pyhv no longer reads the keyboard") from None

    def _answer(self, seconds: float) -> Ran:
        found = self._expect(rb"\r?\n@@ %d (\d+)\r?\n" % self._number, seconds)
        output = bytes(self._seen[: found.start()]).replace(b"\r\n", b"\n").decode(errors="replace")
        status = int(found[1])
        del self._seen[: found.end()]
        return Ran(status, output.strip("\n"))

    def _expect(self, pattern: bytes, seconds: float) -> re.Match[bytes]:
        """Read until `pattern` appears."""
        deadline = time.monotonic() + seconds
        while True:
            if found := re.search(pattern, self._seen):
                return found
            if not self._read(deadline):
                reason = "has not answered in time" if time.monotonic() >= deadline else "has ended"
                raise self._lost(f"the guest {reason}, while {pattern!r} was expected")

    def _read(self, deadline: float) -> bool:
        """More of the console; False at its end, or if nothing came until `deadline`."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(fd, 65536) if ready else b""
        self._seen += data
        return bool(data)

    def _lost(self, reason: str) -> GuestLost:
        """The error that says what was last heard; the guest is gone after this."""
        self._kill()
        tail = self._seen.replace(b"\r\n", b"\n").decode(errors="replace").splitlines()[-TAIL_LINES:]
        words = (self._directory / "stderr").read_text(errors="replace").splitlines()[-TAIL_LINES:]
        parts = (f"{self.setup}: {reason}", "--- end of the console", *tail, "--- what pyhv said", *words)
        return GuestLost("\n".join(parts))

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # what was still to be typed has no reader; the descriptor is closed all the same
        process.kill()
        process.wait()


class Guests:
    """The guest of whichever setup is asked for, one at a time: the one before is powered off.

    `programs` says what a setup's guest is to have. A context manager; leaving it powers off the last one.
    """

    def __init__(self, programs: Callable[[Setup], Mapping[str, Path]], directory: Path) -> None:
        self._programs = programs
        self._directory = directory
        self._guest: LinuxGuest | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._power_off()

    def of(self, setup: Setup) -> LinuxGuest:
        """The guest of `setup`. Raises GuestLost if another one's power-off went wrong."""
        if self._guest is None or self._guest.setup != setup:
            self._power_off()
            directory = self._directory / str(setup)
            directory.mkdir(exist_ok=True)
            self._guest = LinuxGuest(setup, self._programs(setup), directory)
        return self._guest

    def _power_off(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            with guest:
                guest.power_off()
