# SPDX-License-Identifier: GPL-2.0-only
"""A machine that goes on from a snapshot does what it would have done, exit for exit, to the nanosecond."""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pyhv.domain.config import DomainConfig
from pyhv.errors import ConfigError, SnapshotError
from pyhv.guests.build import build_builtin
from pyhv.guests.catalogue import BUILTIN, nets_of
from pyhv.loader.elf import load_image
from pyhv.machine import Machine
from pyhv.observe.digest import Digest
from pyhv.snapshot.snapshot import Snapshot, take
from pyhv.state import entries
from pyhv.testing.go_on import History, finish, go_on
from pyhv.testing.guest_machine import SECOND, Sink, machine
from pyhv.until import Exits, Outcome
from pyhv.xenstore.peers import introduce_peers

PAGES = 1024
COUPLES = [("ping", "pong"), ("smp32", "ticker"), ("code", "grants32"), ("net", "net")]
GROUPS = [(name,) for name in sorted(BUILTIN) if name not in ("ping", "pong", "net")] + COUPLES
CUTS = 3


@dataclass
class Cut:
    """A moment of a run: what had been printed, and what came afterwards."""

    snapshot: Snapshot
    printed: int
    file: Path
    digest: Digest = field(default_factory=Digest)


@dataclass
class Run:
    """A run that was interrupted for snapshots, which nobody inside has noticed."""

    cuts: list[Cut]
    now: int
    text: str

    def rest(self, cut: Cut) -> History:
        return [cut.digest.summary(), self.now, self.text[cut.printed :]]


def boot(made: Machine, names: tuple[str, ...]) -> Sink:
    sink = Sink()
    for name in names:
        image = load_image(build_builtin(name), name)
        made.create(image, DomainConfig(name, PAGES, vcpus=2, nets=nets_of(name)), console=sink)
    introduce_peers(made.store, made.residents.domids())
    return sink


def whole(names: tuple[str, ...]) -> tuple[str, int, int, str]:
    """The run that was never stopped: digest, exits, time, text."""
    with machine(pages=len(names) * PAGES) as made:
        digest, sink = Digest(), boot(made, names)
        made.observe(digest)
        finish(made, 0)
        return digest.summary(), digest.count, made.now(), sink.data.decode("latin-1")


def cut_up(names: tuple[str, ...], at: list[int], directory: Path) -> tuple[Run, str]:
    """The same run, with a snapshot after each of so many exits; and the digest over all of it."""
    with machine(pages=len(names) * PAGES) as made:
        digest, sink = Digest(), boot(made, names)
        made.observe(digest)
        cuts = []
        for stop in at:
            made.run(Exits(stop - digest.count), timeout_ns=60 * SECOND)
            cut = Cut(take(made), len(sink.data), directory / f"{'-'.join(names)}-{stop}")
            cut.snapshot.save(cut.file)
            made.observe(cut.digest)
            cuts.append(cut)
        finish(made, 0)
        return Run(cuts, made.now(), sink.data.decode("latin-1")), digest.summary()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Run]:
    directory = tmp_path_factory.mktemp("snapshots")
    found: dict[tuple[str, ...], Run] = {}
    for names in GROUPS:
        digest, exits, now, text = whole(names)
        chance = random.Random(repr(names))
        at = sorted(chance.sample(range(1, exits), CUTS))
        found[names], again = cut_up(names, at, directory)
        assert (again, found[names].now, found[names].text) == (digest, now, text)
        assert "FAILURE" not in text
    return found


@pytest.fixture(scope="module")
def elsewhere(runs: dict[tuple[str, ...], Run]) -> dict[Path, History]:
    """What machines made of the files do in another process, whose hashes are others."""
    files = [cut.file for run in runs.values() for cut in run.cuts]
    done = subprocess.run(
        [sys.executable, "-m", "pyhv.testing.go_on", "0", *map(str, files)],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    return dict(zip(files, json.loads(done.stdout), strict=True))


@pytest.mark.promise("S-1")
@pytest.mark.parametrize("names", GROUPS, ids="-".join)
def test_a_new_process_goes_on_as_if_nothing_had_been(
    runs: dict[tuple[str, ...], Run], elsewhere: dict[Path, History], names: tuple[str, ...]
) -> None:
    run = runs[names]
    for cut in run.cuts:
        assert elsewhere[cut.file] == run.rest(cut)


@pytest.mark.promise("S-1")
@pytest.mark.parametrize("names", GROUPS, ids="-".join)
def test_any_number_of_machines_goes_on_from_one_moment(
    runs: dict[tuple[str, ...], Run], names: tuple[str, ...]
) -> None:
    run = runs[names]
    for cut in [*run.cuts, run.cuts[0]]:
        assert go_on(cut.snapshot) == run.rest(cut)


@pytest.mark.promise("S-3")
@pytest.mark.parametrize("names", [*COUPLES, ("pages",)], ids="-".join)
def test_a_machine_is_put_back_again_and_again(names: tuple[str, ...]) -> None:
    """To before its guests had ended too, and from one moment to another."""
    chance = random.Random(repr(names))
    with machine(pages=len(names) * PAGES) as made:
        boot(made, names)
        kept: list[tuple[Snapshot, str]] = []
        for _ in range(4):
            made.run(Exits(chance.randrange(1, 15)))
            kept.append((take(made), self_said(made)))
        finish(made, 0)
        digest = end_of(made)
        for _ in range(8):
            snapshot, said = chance.choice(kept)
            snapshot.put_back(made, lambda _domid: Sink())
            assert self_said(made) == said
            assert made.audit() == []
            if chance.random() < 0.7:
                made.run(Exits(chance.randrange(1, 30)), timeout_ns=SECOND)
            if chance.random() < 0.4:
                finish(made, 0)
                assert end_of(made) == digest


def self_said(made: Machine) -> str:
    return repr((take(made).state, made.ram.tables.tobytes().__hash__()))


def end_of(made: Machine) -> tuple[int, list[int]]:
    return made.now(), made.residents.past.exits


def test_a_machine_without_a_free_frame_is_put_back() -> None:
    """To when there were some: what is made anew for it takes none."""
    with machine() as made:
        boot(made, ("ticker",))
        made.run(Exits(9))
        snapshot = take(made)
        finish(made, 0)
        made.frames.allocate_xen(made.frames.free_count)
        snapshot.put_back(made, lambda _domid: Sink())
        assert made.audit() == []
        assert made.frames.free_count > 0
        finish(made, 0)


@pytest.mark.promise("S-2")
def test_a_snapshot_costs_what_was_written_since_the_last_one() -> None:
    with machine() as made:
        boot(made, ("ticker",))
        made.run(Exits(5))
        first = take(made)
        made.run(Exits(5))
        second = take(made)
        assert first.image.layers[0] is second.image.layers[0]
        assert second.image.layers[1].exist.sum() < 60


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with machine() as made, machine(pages=64 * PAGES) as other:
        boot(made, ("hello",))
        made.run(Exits(3))
        snapshot = take(made)
        with pytest.raises(SnapshotError, match="memory has"):
            snapshot.put_back(other, lambda _domid: Sink())
    broken = Snapshot(snapshot.image, {**entries(snapshot.state, "", None), "turn": {}}, None, snapshot.about)
    with pytest.raises(SnapshotError, match="turn should not have, or lacks"):
        broken.rebuild(lambda _domid: Sink())


@pytest.mark.promise("S-4")
@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("config", "scheduler"), "lottery", "no scheduler 'lottery'"),
        (("config", "memory_pages"), 1 << 23, "does not fit"),
        (("config", "max_domains"), 1, "does not fit"),
        (("domains", 0, "config", "weight"), 1 << 30, "weight of"),
        (("domains", 0, "config", "vcpus"), 0, "0 vCPUs"),
        (("domains", 0, "config", "max_event_channels"), -1, "event channels"),
        (("domains", 0, "domain", "tot_pages"), 0, "counts 0"),
        (("domains", 0, "counts", "hypercalls", 3), (1 << 64) - 1, "which is not in"),
        (("dom0", "store", "generation"), (1 << 64) - 1, "which is not in"),
        (("domains", 0, "shared_info"), 1 << 31, "beyond memory"),
        (("domains", 0, "width"), 16, "no domain's width"),
        (("dom0", "devices", 0, "handle"), 5, "devices"),
        (("dom0", "devices", 0, "domid"), 5, "devices of other domains"),
        (("dom0", "devices", 0, "port"), 77, "domain 0's ports name"),
        (("clock", "turn"), None, "what the clock says"),
        (("turn",), None, "what the clock says"),
        (("clock", "turn"), [100, 50, 60], "what it has spent"),
        (("clock", "turn"), [100, 150, 0], "what it has spent"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(path: tuple[str | int, ...], value: Any, sentence: str) -> None:
    with machine() as made:
        boot(made, ("hello",))
        made.run(Exits(3))
        snapshot = take(made)
    at: Any = snapshot.state
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    sinks = {1: Sink()}
    with pytest.raises(SnapshotError, match=sentence):
        # As every caller does who has read a file: he knows of no other domains.
        replace(snapshot, trusted=False).rebuild(lambda domid: sinks[domid])


@pytest.mark.promise("S-4")
def test_a_file_of_more_memory_than_any_machine_has(tmp_path: Path) -> None:
    with machine() as made:
        snapshot = take(made)
    path = tmp_path / "big"
    replace(snapshot, about=replace(snapshot.about, frames=(1 << 32) - 1)).save(path)
    with pytest.raises(SnapshotError, match="frames is 4294967295"):
        Snapshot.load(path)


@pytest.mark.promise("S-4")
def test_memory_that_was_tampered_with_is_found(tmp_path: Path) -> None:
    """With a right digest: only the audit knows that no such machine can have been."""
    with machine() as made:
        boot(made, ("pages",))
        made.run(Exits(20))
        leaf = next(
            at for at in made.frames.owned_by(1).tolist() if made.frames.type[at] == 1 and made.ram.q[at << 9]
        )
        made.ram.store_u64(leaf << 12, made.board.zero_frame << 12 | 7)
        snapshot = take(made)
    path = tmp_path / "tampered"
    snapshot.save(path)
    with pytest.raises(SnapshotError, match="is not sound"):
        Snapshot.load(path).rebuild(lambda _domid: Sink())


def test_a_restored_machine_takes_new_guests() -> None:
    with machine(pages=3 * PAGES) as made:
        boot(made, ("ticker",))
        made.run(Exits(9))
        snapshot = take(made)
    again = snapshot.rebuild(lambda _domid: Sink())
    try:
        sink = Sink()
        image = load_image(build_builtin("hello"), "hello")
        domain = again.create(image, DomainConfig("hello", PAGES), console=sink)
        assert domain.domid == 2
        assert again.run() is Outcome.ENDED
        assert b"SUCCESS" in sink.data
        assert again.audit() == []
        with pytest.raises(ConfigError):
            again.create(image, DomainConfig("big", 64 * PAGES), console=sink)
    finally:
        again.close()
