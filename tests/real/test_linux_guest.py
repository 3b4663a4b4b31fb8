# SPDX-License-Identifier: GPL-2.0-only
"""The harness that runs programs in Debian's guest: what it hands back, and how it tells of a crash."""

from collections.abc import Iterator

import pytest
from linux_guest import GuestLost, LinuxGuest, Setup, Width, compile_program

pytestmark = [pytest.mark.debian, pytest.mark.programs]

SOURCE = """\
#include <stdio.h>
int main(int count, char **words)
{
    printf("%d bits, %s\\n", 8 * (int)sizeof(long), count > 1 ? words[1] : "no word");
    return 7;
}
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxGuest]:
    directory = tmp_path_factory.mktemp("guest")
    source = directory / "width.c"
    source.write_text(SOURCE)
    programs = {f"width{width}": compile_program(source, width) for width in Width}
    with LinuxGuest(Setup(), programs, directory) as guest:
        yield guest
        guest.power_off()


@pytest.mark.parametrize("width", Width)
def test_status_and_output(guest: LinuxGuest, width: Width) -> None:
    ran = guest.run(f"/programs/width{width} 'a  b'")
    assert (ran.status, ran.output) == (7, f"{width} bits, a  b")


def test_standard_error_and_a_last_line_without_end(guest: LinuxGuest) -> None:
    ran = guest.run("printf one; echo two >&2; printf three")
    assert (ran.status, ran.output) == (0, "onetwo\nthree")


def test_a_command_that_does_not_end_is_killed(guest: LinuxGuest) -> None:
    assert guest.run("sleep 1000", seconds=1).status == 137
    assert guest.run("true").status == 0


def test_nothing_of_a_command_is_left(guest: LinuxGuest) -> None:
    guest.run("(sleep 1; echo late) & sleep 1000 &")
    ran = guest.run("sleep 1.5; ps | grep -c '[s]leep 1000'")
    assert (ran.status, ran.output) == (1, "0")


def test_a_command_that_looks_like_an_answer(guest: LinuxGuest) -> None:
    assert guest.run("echo '@@ 1 0'; exit 9").status == 9


def test_a_healthy_kernel_has_no_complaints(guest: LinuxGuest) -> None:
    assert guest.complaints() == []
    guest.run("echo 'WARNING: of a test' >/dev/kmsg")
    assert any("of a test" in line for line in guest.complaints())


def test_a_crash_is_told_with_the_consoles_end_and_a_new_guest_booted(guest: LinuxGuest) -> None:
    with pytest.raises(GuestLost, match=r"(?s)has ended.*Kernel panic - not syncing: sysrq triggered crash"):
        guest.run("echo c >/proc/sysrq-trigger")
    assert guest.run("echo back").output == "back"


def test_silence_is_told(guest: LinuxGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linux_guest.PATIENCE", 0)
    with pytest.raises(GuestLost, match="has not answered in time"):
        guest.run("echo begun; sleep 1000", seconds=1.5)
