# SPDX-License-Identifier: GPL-2.0-only
"""Debian's Linux goes on from a snapshot, in another process, exit for exit as if it had never stopped."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyhv
from pyhv.observe.digest import Digest
from pyhv.testing import go_on

pytestmark = pytest.mark.debian

EXITS = 70_000
"""A boot up to its drivers; the shell comes at about twice as many."""
CUTS = 3


def boot(machine: pyhv.Machine, vcpus: int) -> pyhv.Guest:
    return machine.boot("debian", memory="128M", vcpus=vcpus)


@pytest.mark.promise("S-1")
@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_boot_goes_on_in_a_new_process(vcpus: int, tmp_path: Path) -> None:
    chance = random.Random(vcpus)
    at = sorted(chance.sample(range(1000, EXITS), CUTS))
    with pyhv.Machine(memory="160M", virtual_time=True) as machine:
        whole = Digest()
        machine.hypervisor.observe(whole)
        boot(machine, vcpus)
        machine.run(exits=EXITS)
        end = machine.hypervisor.now()
    with pyhv.Machine(memory="160M", virtual_time=True) as machine:
        total, rest = Digest(), []
        machine.hypervisor.observe(total)
        guest = boot(machine, vcpus)
        for stop in at:
            machine.run(exits=stop - total.count)
            machine.snapshot().save(tmp_path / str(stop))
            rest.append((Digest(), guest.console.position))
            machine.hypervisor.observe(rest[-1][0])
        machine.run(exits=EXITS - total.count)
        assert (total.summary(), machine.hypervisor.now()) == (whole.summary(), end)
        expected = [[digest.summary(), end, guest.console.data[start:].decode()] for digest, start in rest]
    for stop, wanted in zip(at, expected, strict=True):
        done = subprocess.run(
            [sys.executable, go_on.__file__, str(EXITS - stop), tmp_path / str(stop)],
            stdout=subprocess.PIPE,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(stop)},
        )
        assert json.loads(done.stdout) == [wanted]


@pytest.fixture(scope="module")
def guest() -> Iterator[tuple[pyhv.Machine, pyhv.Guest]]:
    with pyhv.Machine(memory="160M", virtual_time=True) as machine:
        guest = boot(machine, 1)
        guest.expect(r"/ # ")
        yield machine, guest


@pytest.mark.promise("S-3")
def test_what_was_done_is_undone(guest: tuple[pyhv.Machine, pyhv.Guest]) -> None:
    machine, linux = guest
    before = machine.snapshot()
    for _ in range(3):
        assert linux.run("echo here > /tmp/x; dd if=/dev/urandom of=/tmp/y bs=4096 count=1000 2>/dev/null")
        assert linux.run("cat /tmp/x").output == "here\n"
        linux.send("poweroff -f\n")
        assert linux.wait().reason == "poweroff"
        machine.revert(before)
        assert linux.run("cat /tmp/x 2>&1").status == 1
    machine.revert(before)


@pytest.mark.promise("S-2")
def test_many_forks_share_what_they_do_not_write(guest: tuple[pyhv.Machine, pyhv.Guest]) -> None:
    machine, linux = guest
    before = proportional_set_size()
    forks = [machine.fork() for _ in range(20)]
    try:
        answers = {fork.domains["debian"].run(f"echo {number}").output for number, fork in enumerate(forks)}
        assert answers == {f"{number}\n" for number in range(20)}
        assert proportional_set_size() - before < 20 * 15 << 20
        assert linux.run("echo still here").output == "still here\n"
    finally:
        for fork in forks:
            fork.close()


def proportional_set_size() -> int:
    """Bytes of memory that this process has, shared pages by its part of them."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))


@pytest.mark.promise("S-7")
@pytest.mark.parametrize("vcpus", [1, 2])
def test_real_time_goes_on_too(vcpus: int, tmp_path: Path) -> None:
    path = tmp_path / "debian.snap"
    with pyhv.Machine(memory="160M") as machine:
        linux = boot(machine, vcpus)
        linux.expect(r"/ # ")
        assert linux.run("dmesg -n 1")  # what the kernel has to say would stand among the answers
        uptime = float(linux.run("cat /proc/uptime").output.split()[0])
        machine.snapshot().save(path)
    with pyhv.load(path) as again:
        linux = again.domains["debian"]
        now = float(linux.run("cat /proc/uptime").output.split()[0])
        assert uptime <= now < uptime + 20
        assert linux.run("sleep 1; for n in 1 2 3; do ls / | wc -l; done; nproc").output.endswith(
            f"{vcpus}\n"
        )
        linux.shutdown()
        assert linux.wait().reason == "poweroff"
