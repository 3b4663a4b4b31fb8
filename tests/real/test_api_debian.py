# SPDX-License-Identifier: GPL-2.0-only
"""The README's Python, and what else wants a real Linux: typing, commands, shutting down."""

import re
from pathlib import Path

import pytest

import pyhv
from pyhv.observe.digest import Digest
from pyhv.testing.under_test import GuestUnderTest

pytestmark = pytest.mark.debian

README = Path(__file__).parents[2] / "README.md"


def test_the_readme() -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    exec(compile(block, str(README), "exec"), {})


LINUX = pytest.mark.guest("debian", memory="128M")


@LINUX
@pytest.mark.parametrize(
    ("command", "status", "output"),
    [
        ("true", 0, ""),
        ("echo one; echo two", 0, "one\ntwo\n"),
        ("printf no-newline", 0, "no-newline"),
        ("echo \"it's\" '$HOME' \\\\", 0, "it's $HOME \\\n"),
        ("exit 7", 7, ""),
        ("for n in 1 2\ndo echo $n\ndone", 0, "1\n2\n"),
        ("nonsense 2>/dev/null", 127, ""),
        ("echo @pyhv-1=0@", 0, "@pyhv-1=0@\n"),
    ],
)
def test_commands(booted_guest: GuestUnderTest, command: str, status: int, output: str) -> None:
    ran = booted_guest.run(command, check=False)
    assert (ran.status, ran.output, bool(ran)) == (status, output, status == 0)


@LINUX
def test_a_command_that_takes_too_long(booted_guest: GuestUnderTest) -> None:
    with pytest.raises(pyhv.GuestFailed, match=r"2 s of the machine's time have passed"):
        booted_guest.run("sleep 1000", timeout=2)
    booted_guest.send("\x03")
    assert booted_guest.run("echo here").output == "here\n"
    with pytest.raises(pyhv.PyhvError, match="too long for a terminal"):
        booted_guest.run("x" * 1000)


@LINUX
def test_much_is_typed_at_the_guests_pace(booted_guest: GuestUnderTest) -> None:
    lines = "".join(f"line {number}\n" for number in range(2000))
    booted_guest.send("cat > /tmp/typed\n" + lines + "\x04")
    assert booted_guest.run("md5sum < /tmp/typed; wc -l < /tmp/typed").output.endswith("2000\n")


@LINUX
def test_reboot_is_an_end(booted_guest: GuestUnderTest) -> None:
    booted_guest.reboot()
    assert booted_guest.wait().reason == "reboot"


@pytest.mark.promise("T-14")
def test_a_boot_in_pieces_is_the_same_boot() -> None:
    def history(pieces: bool) -> tuple[str, str]:
        with pyhv.Machine(memory="256M", virtual_time=True) as machine:
            digest = Digest()
            machine.hypervisor.observe(digest)
            guest = machine.boot("debian", memory="128M", vcpus=2)
            while pieces and digest.count < 60_000:
                machine.run(seconds=0.001)
                machine.run(exits=91)
            machine.run(exits=90_000 - digest.count)
            return digest.summary(), guest.console.text

    assert history(pieces=True) == history(pieces=False)
