# SPDX-License-Identifier: GPL-2.0-only
"""Linux' own tests (tools/testing/selftests) as static programs, from Debian's package of its sources.

    apt-get download linux-source-6.1                      into a temporary directory
    dpkg-deb --fsys-tarfile | ... linux-source-6.1.tar.xz  and of that only the directories below
    gcc -static [-m32]                                     as the tests' own Makefiles do it, but static

Sources and programs are kept in the cache of pyhv, under the version of the package: nothing of them is part
of this project. Which tests there are, and what each gives, is bench/selftests.toml's.
"""

import hashlib
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

from linux_guest import Width, compiler

from bench.selftests import Selftest
from pyhv.cache import cache_directory
from pyhv.cli.messages import PlainProgress
from pyhv.images import archive

PACKAGE = "linux-source-6.1"
DIRECTORIES = ("x86", "timers", "vm", "futex", "ptrace", "breakpoints", "vDSO", "sigaltstack", "membarrier")
SELFTESTS = "tools/testing/selftests"
WANTED = (
    *(f"{SELFTESTS}/{directory}/" for directory in DIRECTORIES),
    f"{SELFTESTS}/kselftest",
    "arch/x86/include/asm/desc_defs.h",
)
"""Beginnings of the files' names, below the top of the kernel's sources."""

FLAGS = ("-O2", "-std=gnu99", "-pthread", "-w", "-static", "-no-pie", "-s", "-D_GNU_SOURCE")
MORE_FLAGS = {
    "x86": ("-DCAN_BUILD_32", "-DCAN_BUILD_64"),
    "futex/functional": ("-I../include", "-I../.."),
    "vm": ("-O0", "-mxsave"),
    "ptrace": ("-O0",),
    "breakpoints": ("-O0",),
}
"""What a directory's Makefile has otherwise: several ask for no optimization, and count on that."""
MORE_SOURCES = {
    ("x86/sysret_ss_attrs", Width.BITS64): ("thunks.S",),
    ("x86/ptrace_syscall", Width.BITS32): ("raw_syscall_helper_32.S",),
    ("x86/test_syscall_vdso", Width.BITS32): ("thunks_32.S",),
    ("x86/check_initial_reg_state", Width.BITS64): ("-Wl,-ereal_start",),
    ("x86/check_initial_reg_state", Width.BITS32): ("-Wl,-ereal_start",),
    ("vDSO/vdso_test_abi", Width.BITS64): ("parse_vdso.c",),
    ("vDSO/vdso_test_gettimeofday", Width.BITS64): ("parse_vdso.c",),
    ("vDSO/vdso_test_getcpu", Width.BITS64): ("parse_vdso.c",),
    ("timers/valid-adjtimex", Width.BITS64): ("-Wl,-z,muldefs",),
    ("timers/valid-adjtimex", Width.BITS32): ("-Wl,-z,muldefs",),
}
WITH_VM_UTIL = ("khugepaged", "madv_populate", "soft-dirty", "split_huge_page_test", "userfaultfd")


def sources() -> Path:
    """What is needed of the kernel's sources, from the cache or fetched. Raises EnvironmentProblem."""
    root = cache_directory() / "selftests"
    if found := sorted(root.glob(f"{PACKAGE}_*")):
        return found[-1]
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as name:
        scratch = Path(name)
        scratch.chmod(0o755)  # apt, if run by root, downloads as its own user
        progress = PlainProgress()
        with archive.open_archive(None, scratch, progress) as packages:
            packages.download([PACKAGE], scratch, progress)
        package = archive.only_package(scratch, f"{PACKAGE}_")
        archive.extract(package, re.compile(r"\./usr/src/.*\.tar\.xz"), scratch / "source.tar.xz")
        ready = scratch / "ready"
        _unpack(scratch / "source.tar.xz", ready)
        target = root / package.stem
        archive.publish(ready, target, is_complete=target.is_dir())
    return target


def _unpack(tarball: Path, target: Path) -> None:
    with tarfile.open(tarball, "r|xz") as files:
        for entry in files:
            name = entry.name.partition("/")[2]
            if name.startswith(WANTED) and (source := files.extractfile(entry)):
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(source.read())


def build(test: Selftest, width: Width) -> Path:
    """One test as a program for `width`, beside its source; built once for each way to build it."""
    gcc = compiler(width)
    directory = sources() / SELFTESTS / test.directory
    stem = test.name.rpartition("/")[2]
    more: tuple[str, ...] = MORE_SOURCES.get((test.name, width), ())
    if test.directory == "vm" and stem in WITH_VM_UTIL:
        more += ("vm_util.c",)
    command = [gcc, *FLAGS, *width.value, *MORE_FLAGS.get(test.directory, ()), f"{stem}.c", *more]
    command += ["-lrt", "-ldl", "-lm"]
    target = directory / f"{stem}_{width}-{hashlib.sha256(repr(command).encode()).hexdigest()[:8]}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            made = Path(scratch) / "made"
            done = subprocess.run([*command, "-o", str(made)], cwd=directory, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"
            made.replace(target)
    return target
