# SPDX-License-Identifier: GPL-2.0-only
"""Hypercall coverage: what is counted, in either lane and width, and how pytest tells it."""

from collections.abc import Iterator

import pytest
from plugin_sessions import LIGHT

import pyhv
from pyhv.abi.numbers import Hypercall, Mmuext
from pyhv.hypercalls.registry import COMMANDS, HYPERCALLS
from pyhv.observe.coverage import Answers, Line, lines, summary, table

pytest_plugins = ["pytester"]


@pytest.fixture
def answers() -> Iterator[Answers]:
    """Switched on; afterwards the table is what it was."""
    before = list(HYPERCALLS), dict(COMMANDS[Hypercall.MMUEXT_OP])
    found = Answers()
    found.switch_on()
    yield found
    found.switch_off()
    assert (list(HYPERCALLS), dict(COMMANDS[Hypercall.MMUEXT_OP])) == before


def line_of(answers: Answers, hypercall: str, command: str = "") -> Line:
    return next(one for one in lines(answers.counts) if (one.hypercall, one.command) == (hypercall, command))


def run(*guests: str) -> None:
    with pyhv.Machine("64M", virtual_time=True) as machine:
        for guest in guests:
            machine.boot(guest)
        machine.introduce_peers()
        machine.run()


def test_what_guests_do_is_counted(answers: Answers) -> None:
    run("pages")
    pin = line_of(answers, "mmuext_op", "pin_l1_table")
    assert pin.made > 1
    assert pin.seen == ("EINVAL",)
    assert line_of(answers, "mmu_update").made > 0
    assert "EINVAL" in line_of(answers, "mmu_update").seen
    assert "EINVAL" not in line_of(answers, "mmu_update").unseen
    assert line_of(answers, "vcpu_op").made == 0
    assert line_of(answers, "sched_op", "shutdown").made == 1


def test_of_32_bit_guests_and_inside_multicalls(answers: Answers) -> None:
    run("linux32")
    assert line_of(answers, "stack_switch").made == line_of(answers, "multicall").made > 50
    run("ping", "pong")
    assert line_of(answers, "grant_table_op", "map_grant_ref").made == 1
    assert line_of(answers, "grant_table_op").made >= 2


def test_a_guest_counts_the_same_as_without(answers: Answers) -> None:
    with pyhv.Machine("64M", virtual_time=True) as machine:
        guest = machine.boot("pages")
        end = guest.wait()
        counted_time = machine.time
    for hypercall in ("mmu_update", "update_va_mapping", "event_channel_op", "sched_op"):
        made = end.counts.hypercalls[Hypercall[hypercall.upper()]]
        assert line_of(answers, hypercall).made in (made, made - 1), "the last one gives way"
    answers.switch_off()
    with pyhv.Machine("64M", virtual_time=True) as machine:
        machine.boot("pages").wait()
        assert machine.time == counted_time


def test_all_there_is_has_a_line() -> None:
    found = list(lines(Answers().counts))
    assert {line.hypercall for line in found} == {one.name for one in HYPERCALLS if one} - {"iret"}
    assert {line.command for line in found if line.hypercall == "mmuext_op"} >= {
        one.name.lower() for one in Mmuext
    }
    assert all(line.made == 0 and not line.seen for line in found)
    assert len(table(Answers().counts)) == len(found) + 2
    assert summary(Answers().counts).startswith("0 of 4")


SESSION = """
    import pytest

    @pytest.mark.guest("hello")
    def test_one(guest):
        guest.wait()

    @pytest.mark.guest("pages")
    def test_two(guest):
        guest.wait()
    """


@pytest.mark.parametrize("workers", [0, 2])
def test_pytest_tells_it(pytester: pytest.Pytester, workers: int) -> None:
    """The workers of pytest-xdist together, too."""
    pytester.makepyfile(SESSION)
    more = ["-n", str(workers)] if workers else []
    done = pytester.runpytest_subprocess(*LIGHT, *more, "--pyhv-coverage=covered.md")
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(
        [
            "*= pyhv: hypercall coverage =*",
            "* of 42 hypercalls, * commands, * errors",
            "*table is in covered.md",
        ]
    )
    text = (pytester.path / "covered.md").read_text()
    assert "| sched_op | shutdown | 2 |" in text
    assert "| xen_version | extraversion | 1 |" in text
    assert "| mmuext_op | pin_l1_table | 4 | EINVAL |  |" in text


def test_it_is_off_unless_asked_for(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SESSION)
    assert "coverage" not in pytester.runpytest_inprocess(*LIGHT).stdout.str()
    pytester.makeini("[pytest]\npyhv_coverage = -\n")
    pytester.runpytest_inprocess(*LIGHT).stdout.fnmatch_lines(["*= pyhv: hypercall coverage =*"])
    pytester.runpytest_inprocess(*LIGHT, "--pyhv-coverage=/no/such/dir").stdout.fnmatch_lines(
        ["*--pyhv-coverage: /no/such/dir cannot be written (No such file or directory)"]
    )
