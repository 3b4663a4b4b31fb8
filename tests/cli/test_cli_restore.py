# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv boot --save`, `pyhv restore` and `pyhv inspect` of a snapshot, as processes of their own."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from pyhv.api.notes import GuestNotes, MachineNotes
from pyhv.snapshot import container
from pyhv.snapshot.pages import PageWriter
from pyhv.snapshot.snapshot import GuestAbout, Snapshot
from pyhv.state import construct, entries, state

Named = TypeVar("Named", GuestNotes, GuestAbout)
PYHV = str(Path(sys.executable).with_name("pyhv"))


def pyhv(*words: object, status: int = 0) -> tuple[str, str]:
    """Standard output and error of a run that ends with `status`."""
    done = subprocess.run(
        [PYHV, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole() -> str:
    """What the guest prints that is never stopped."""
    return pyhv("boot", "ticker", "--virtual-time")[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, whole: str) -> Path:
    path = tmp_path_factory.mktemp("saved") / "ticker.snap"
    printed, said = pyhv("boot", "ticker", "--virtual-time", "--save", path, "--save-when", "tick 2 ")
    assert whole.startswith(printed)
    assert printed.rstrip().splitlines()[-1].startswith("  tick 2 ")
    assert re.fullmatch(rf"pyhv: ticker saved at 0\.02\d s; to go on: pyhv restore {path}\n", said)
    return path


@pytest.mark.promise("S-1")
def test_a_restored_guest_prints_the_rest(whole: str, saved: Path) -> None:
    printed, said = pyhv("restore", saved)
    assert whole.endswith(printed)
    assert printed.startswith("  tick 3 ")
    assert printed.endswith("SUCCESS\n")
    assert said == ""


def test_a_digest_goes_on_the_same_each_time(saved: Path, tmp_path: Path) -> None:
    digests = []
    for option in ("--engine-tuning", "--no-engine-tuning"):
        pyhv("restore", saved, "--digest", tmp_path / "digest", option)
        digests.append((tmp_path / "digest").read_text())
    assert digests[0] == digests[1]
    assert int(digests[0].split()[1]) > 10


def test_it_is_saved_again_and_goes_on_again(whole: str, saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.snap"
    first, _ = pyhv("restore", saved, "--save", again, "--save-after", "0.015")
    second, _ = pyhv("restore", again)
    assert whole.endswith(first + second)
    assert first


def test_copies_know_nothing_of_each_other(whole: str, saved: Path) -> None:
    printed, _ = pyhv("restore", saved, "--count", 3, "--unique")
    rest = pyhv("restore", saved)[0].splitlines()
    for number in (1, 2, 3):
        mark = f"ticker-{number}| "
        assert [line.removeprefix(mark) for line in printed.splitlines() if line.startswith(mark)] == rest


def test_the_gravest_copy_decides(saved: Path) -> None:
    _, said = pyhv("restore", saved, "--count", 2, "--timeout", "0.001", status=124)
    assert said.count("the time budget is spent; still running: ticker") == 2


def test_several_guests_of_one_machine(tmp_path: Path) -> None:
    path = tmp_path / "two.snap"
    whole, _ = pyhv("boot", "ping", "pong", "--virtual-time")
    first, _ = pyhv("boot", "ping", "pong", "--virtual-time", "--save", path, "--save-after", "0.00005")
    second, _ = pyhv("restore", path)
    assert first + second == whole


def test_what_is_in_a_file(saved: Path) -> None:
    printed, _ = pyhv("inspect", saved)
    assert "s of virtual time" in printed
    assert "ticker, running: 64 bits, 1 vCPU(s), 16 MiB" in printed
    assert f"pyhv restore {saved}" in printed


def test_a_verdict_is_asked_for_after_restoring_too(tmp_path: Path) -> None:
    path = tmp_path / "judged.snap"
    words = ("hello", "--virtual-time", "--verdict", "xtf")
    assert "no line 'Test result" in pyhv("boot", *words, status=5)[1]
    pyhv("boot", *words, "--save", path, "--save-after", "0.000001")
    assert "no line 'Test result" in pyhv("restore", path, status=5)[1]


@pytest.mark.promise("S-4")
def test_a_head_that_is_none(saved: Path, tmp_path: Path) -> None:
    path, snapshot = tmp_path / "headless.snap", Snapshot.load(saved)
    head = entries(state(snapshot.about), "head")
    del head["guests"]
    container.write(path, head, {"machine": snapshot.state, "notes": None}, PageWriter(snapshot.image))
    for command in ("restore", "inspect"):
        assert pyhv(command, path, status=4)[1].startswith(f"pyhv: {path}: Saved state is not valid: head")


@pytest.mark.promise("S-4")
def test_names_of_a_file_do_not_steer_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "steering.snap"
    pyhv("boot", "ping", "pong", "--virtual-time", "--save", path, "--save-after", "0.00005")
    snapshot = Snapshot.load(path)
    notes = construct(MachineNotes, snapshot.notes, "notes")
    replace(
        snapshot,
        about=replace(snapshot.about, guests=[steering(one) for one in snapshot.about.guests]),
        notes=state(replace(notes, guests=[steering(one) for one in notes.guests])),
    ).save(path)
    for command in ("restore", "inspect"):
        printed, said = pyhv(command, path)
        assert r"\x1b[2Jping" in printed
        assert "\x1b[2J" not in printed + said


def steering(guest: Named) -> Named:
    """The same guest, with a name that clears the screen."""
    return replace(guest, name="\x1b[2J" + guest.name)


@pytest.mark.promise("S-4")
def test_what_cannot_be(saved: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.snap"
    cut.write_bytes(saved.read_bytes()[:3000])
    for command in ("restore", "inspect"):
        assert pyhv(command, cut, status=4)[1] == f"pyhv: {cut}: is truncated: it ends within a section\n"
    missing = tmp_path / "none" / "x.snap"
    assert "cannot be read" in pyhv("restore", missing, status=4)[1]
    _, said = pyhv("boot", "hello", "--save", missing, status=4)
    assert said == f"pyhv: {missing}: {missing.parent} is no directory in which you may write\n"
    _, said = pyhv("boot", "hello", "--save", tmp_path / "x", "--save-when", "never", status=0)
    assert said == f"pyhv: {tmp_path / 'x'}: nothing was saved, since all guests have ended\n"
    assert "need --save" in pyhv("boot", "hello", "--save-when", "x", status=2)[1]
    assert "no regular expression" in pyhv("boot", "hello", "--save", "x", "--save-when", "(", status=4)[1]
    assert "for one copy" in pyhv("restore", saved, "--count", 2, "--save", "x", status=2)[1]
