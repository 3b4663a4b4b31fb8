# SPDX-License-Identifier: GPL-2.0-only
"""Inputs of the fuzzers, replayed without one: the seeds, and everything that once found a bug. And the
fuzzers themselves: their checks notice damage, and no hypercall is left out.
"""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elf_maker import BOOTABLE, ElfMaker

from fuzz.findings import minimise, outcome, signature
from fuzz.images import check_memory
from fuzz.names import TARGETS, make
from fuzz.requests import NUMBERS
from fuzz.target import Finding, Target, arm, watched
from fuzz.world import World
from pyhv.address import Mfn
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.hypercalls.table import Status
from pyhv.loader import builder
from pyhv.loader.elf import load_image
from pyhv.storage.qcow2.disk import Qcow2Disk
from pyhv.storage.qcow2.refcounts import Refcounts

ROOT = Path(__file__).parents[2] / "fuzz"
REGRESSIONS = sorted(path for path in (ROOT / "regressions").glob("*/*"))


@pytest.mark.promise("I-12", "S-4")
@pytest.mark.parametrize("name", TARGETS)
def test_seeds_show_nothing(name: str) -> None:
    seeds = sorted((ROOT / "corpus" / name).iterdir())
    assert seeds
    target = make(name)
    with watched():
        for path in seeds:
            target.run(path.read_bytes())
        target.finish()
    assert target.calls >= len(seeds)


@pytest.mark.promise("I-15")
@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once(path: Path) -> None:
    with watched():
        make(path.parent.name).replay(path.read_bytes())


def test_the_seeds_are_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "corpus").glob("*/*")) < 300_000


@pytest.mark.promise("I-15")
def test_no_hypercall_is_left_out() -> None:
    """Those that are always refused get random arguments only; all others have a request of their own."""
    offered = {e.number for e in HYPERCALLS if e is not None and e.status is not Status.REFUSED}
    assert offered <= set(NUMBERS)


# -- the checks themselves -----------------------------------------------------------------------------------


def damage_victim(world: World) -> None:
    world.machine.ram.writable.q[world.victim.frames[3] << 9] ^= 1


def copy_secret(world: World) -> None:
    world.machine.ram.writable.tables[world.guests[0].frames[3]] = world.machine.ram.tables[
        world.victim.frames[3]
    ]


def lose_reference(world: World) -> None:
    world.machine.frames.refs[world.guests[0].frames[3]] += 1


def miscount(world: World) -> None:
    world.guests[1].domain.tot_pages -= 1


def kill_victim(world: World) -> None:
    world.machine.services.crash(world.victim.domain, "it was told to")


@pytest.mark.promise("I-15")
@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (damage_victim, "victim"),
        (copy_secret, "secret"),
        (lose_reference, "audit"),
        (miscount, "audit"),
        (kill_victim, "victim"),
    ],
)
def test_damage_is_noticed(damage: Callable[..., Any], kind: str) -> None:
    world = World()
    try:
        world.check(thoroughly=True)
        damage(world)
        with pytest.raises(Finding) as caught:
            world.check(thoroughly=True)
        assert caught.value.kind == kind
    finally:
        world.close()


def test_a_wrong_image_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = ElfMaker().load(0x100000, b"x" * 4096).load(0x100100, b"y" * 16, 0x400).notes(BOOTABLE)
    image = load_image(maker.make(), "k")
    check_memory(image, b"ramdisk")
    monkeypatch.setattr(builder, "_clear", lambda *_: None)
    with pytest.raises(Finding, match=r"memory: .* not those of the file"):
        check_memory(image, b"ramdisk")


@pytest.mark.promise("I-15")
def test_a_leak_is_noticed_when_all_have_died() -> None:
    world = World()
    try:
        world.machine.frames.allocate_xen()
        with pytest.raises(Finding, match="leak: 1 frames"):
            world.finish()
    finally:
        world.close()


@pytest.mark.promise("I-15")
@pytest.mark.parametrize(
    ("part", "method", "instead", "kind"),
    [
        (Qcow2Disk, "_write_in_place", lambda *_: [], "read"),
        (Qcow2Disk, "_from_base", lambda _disk, _offset, length: b"?" * length, "read"),
        (Refcounts, "write", lambda _counts: None, "check"),
    ],
)
def test_a_wrong_disk_is_noticed(
    monkeypatch: pytest.MonkeyPatch, part: type, method: str, instead: Callable[..., Any], kind: str
) -> None:
    target = make("qcow2")
    target.replay(b"")  # its images are made by a disk that is right
    monkeypatch.setattr(part, method, instead)
    seeds = [path.read_bytes() for path in (ROOT / "corpus" / "qcow2").iterdir()]
    found = {outcome(target, data) for data in seeds if len(data) > 120 and data[1] == 0}  # of sound images
    assert f"Finding:{kind}" in found


class Toy(Target):
    """Fails at an `x` that follows an `a`, anywhere before it."""

    name = "toy"

    def run(self, data: bytes) -> bytes:
        self.steps = list(range(len(data)))
        self.calls += len(data)
        seen = False
        for byte in data:
            seen = seen or byte == ord("a")
            if seen and byte == ord("x"):
                raise Finding("toy", "an x after an a")
        return data

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


def test_a_finding_is_made_small() -> None:
    toy = Toy()
    data = b"....x....a.......b...x...x..."
    assert outcome(toy, data) == "Finding:toy"
    assert outcome(toy, b"xa") is None
    assert minimise(toy, data, "Finding:toy") == b"ax"


def test_a_step_is_bounded_only_while_somebody_watches() -> None:
    arm()
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    with watched():
        arm()
        assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0


def test_signatures_name_the_place() -> None:
    with pytest.raises(IndexError) as caught:
        World().machine.frames.drop_shared(Mfn(1 << 30))
    assert signature(caught.value) == "IndexError:frames.drop_shared"
