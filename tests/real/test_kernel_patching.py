# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel changes its own code while processes use it: the function tracer, kprobes, modules, static
keys and compiled BPF programs, switched on and off under load. What it answers must be right, and it must not
complain.
"""

import re
from collections.abc import Iterator

import pytest
from linux_guest import LinuxGuest, Setup, kernel_modules

pytestmark = pytest.mark.debian

MODULES = (
    "crypto/md4",
    "drivers/net/dummy",
    "fs/nls/nls_ascii",
    "lib/test_bpf",
    "lib/test_static_key_base",
    "lib/test_static_keys",
)
"""In Debian's kernel package; without dependencies, and of no use for hardware."""
SETUPS = [
    Setup(vcpus=1, tuned=True),
    Setup(vcpus=1, tuned=False),
    Setup(vcpus=2, tuned=True),
    Setup(vcpus=2, tuned=False),
    Setup(vcpus=1, tuned=True, virtual=True),
]
LOAD = """\
# Computes one thing over and over, in ever new processes, until /tmp/stop is there; a wrong answer is noted.
while [ ! -e /tmp/stop ]; do
    answer=$(head -c 3000 /bin/busybox | md5sum | cut -c1-32)
    [ "$answer" = "$1" ] || echo "$answer" >>/tmp/wrong
    echo >>/tmp/rounds
done
"""
TRACING = "cd /sys/kernel/tracing"
ROUNDS = 4


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxGuest]:
    directory = tmp_path_factory.mktemp("guest")
    load = directory / "load"
    load.write_text(LOAD)
    with LinuxGuest(request.param, kernel_modules(MODULES) | {"load": load}, directory) as guest:
        guest.run("head -c 3000 /bin/busybox | md5sum | cut -c1-32 >/tmp/right")
        assert guest.run(f"{TRACING} && echo 'vfs_*' >set_ftrace_filter").status == 0
        yield guest
        assert guest.complaints() == []
        guest.power_off()


def under_load(guest: LinuxGuest, command: str) -> str:
    """The output of a command that runs beside processes, whose answers stay right and which go on."""
    ran = guest.run(
        "rm -f /tmp/stop; true >/tmp/wrong; true >/tmp/rounds; sh /programs/load $(cat /tmp/right) &"
        f" {command}; echo status $?; touch /tmp/stop; wait; cat /tmp/wrong; wc -l </tmp/rounds"
    )
    *output, status, rounds = ran.output.splitlines()
    assert ran.status == 0, ran.output
    assert status == "status 0", ran.output
    assert int(rounds) > 2
    return "\n".join(output)


@pytest.mark.promise("C-14")
def test_the_function_tracer(guest: LinuxGuest) -> None:
    """Calls to 70 functions patched in and out; while they are out, nothing is traced.

    (Reading the trace is not traced: it would never end.)
    """
    output = under_load(
        guest,
        f"{TRACING} && for i in $(seq {ROUNDS}); do echo 1 >tracing_on && echo function >current_tracer"
        " && head -c 100 /dev/zero >/tmp/zeros && echo 0 >tracing_on && grep -c 'head.*vfs_write' trace"
        " && echo nop >current_tracer && echo >trace && echo 1 >tracing_on"
        " && head -c 100 /dev/zero >/tmp/zeros && grep -v '^#' trace | wc -l; done",
    )
    counts = [int(line) for line in output.splitlines()]
    assert len(counts) == 2 * ROUNDS
    assert all(traced >= 1 for traced in counts[::2]), output
    assert not any(counts[1::2]), output


@pytest.mark.promise("C-14")
def test_kprobes(guest: LinuxGuest) -> None:
    """A probe at a function's beginning, one at its return, with the value; put in and taken out."""
    output = under_load(
        guest,
        f"{TRACING} && echo 'p:begins vfs_write' >kprobe_events"
        " && echo 'r:ends vfs_write got=$retval' >>kprobe_events"
        f" && for i in $(seq {ROUNDS}); do echo 1 >events/kprobes/enable && head -c 77 /dev/zero >/tmp/zeros"
        " && echo 0 >events/kprobes/enable && grep -c 'head-.* begins:' trace"
        " && grep -c 'head-.* ends:.*got=0x4d$' trace && echo >trace && head -c 77 /dev/zero >/tmp/zeros"
        " && grep -v '^#' trace | wc -l; done && echo >kprobe_events",
    )
    counts = [int(line) for line in output.splitlines()]
    assert len(counts) == 3 * ROUNDS
    assert all(begun >= 1 for begun in counts[::3]), output
    assert all(ended == 1 for ended in counts[1::3]), output
    assert not any(counts[2::3]), output


@pytest.mark.promise("C-14")
def test_modules(guest: LinuxGuest) -> None:
    """Loaded and unloaded in turn, so that one's code comes to where the other's was."""
    output = under_load(
        guest,
        f"cd /programs && for i in $(seq {ROUNDS}); do"
        " insmod dummy.ko && cat /sys/class/net/dummy0/addr_len"
        " && insmod md4.ko && grep -c '^driver.*: md4-generic' /proc/crypto"
        " && rmmod dummy && insmod nls_ascii.ko && rmmod md4"
        " && insmod dummy.ko numdummies=2 && ls -d /sys/class/net/dummy? | wc -l"
        " && rmmod nls_ascii && rmmod dummy; done && wc -l </proc/modules",
    )
    assert output.split() == ["6", "1", "2"] * ROUNDS + ["0"]


@pytest.mark.promise("C-14")
def test_static_keys(guest: LinuxGuest) -> None:
    """The kernel's own test: branches are patched to either side and must go there."""
    output = under_load(
        guest,
        f"cd /programs && for i in $(seq {ROUNDS}); do"
        " insmod test_static_key_base.ko && insmod test_static_keys.ko"
        " && rmmod test_static_keys && rmmod test_static_key_base && echo right; done",
    )
    assert output.split() == ["right"] * ROUNDS


@pytest.mark.promise("C-14")
def test_compiled_bpf_programs(guest: LinuxGuest) -> None:
    """The kernel's own test of its BPF compiler, which writes by one mapping what runs by another."""
    output = under_load(
        guest,
        "cd /programs && dmesg -c >/dev/null"
        " && insmod test_bpf.ko test_suite=test_bpf test_range=0,150 && dmesg | grep -o 'Summary: .*'",
    )
    assert re.fullmatch(r"Summary: 151 PASSED, 0 FAILED, \[(\d+)/\1 JIT'ed\]", output)
