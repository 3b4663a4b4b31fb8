# SPDX-License-Identifier: GPL-2.0-only
"""The measuring itself: marks and spans, ratios of pairs, and that the guests of `bench` can be built."""

from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _bench_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROJECT))


def test_a_line_has_the_time_of_the_piece_that_ends_it() -> None:
    from bench.timeline import LineReader, Mark

    reader = LineReader()
    reader.take(b"[    0.1] Linux\r\nPYHV-INIT-OK 1", 1.0)
    reader.take(b".50\r\r\nPYHV-BEGIN md5 2.00\n", 2.0)
    assert reader.marks == [Mark("INIT-OK", "", 1.5, 2.0), Mark("BEGIN", "md5", 2.0, 2.0)]


def test_nested_parts_have_spans_of_their_own() -> None:
    from bench.timeline import LineReader, Timeline

    reader = LineReader()
    for second, line in enumerate(["BEGIN cpu", "BEGIN sh", "END sh", "BEGIN awk", "END awk", "END cpu"]):
        reader.take(f"PYHV-{line} {second}.00\n".encode(), second + 0.5)
    timeline = Timeline(reader.marks)
    assert timeline.span("cpu").host_s == 5
    assert timeline.span("awk").guest_s == 1
    with pytest.raises(KeyError):
        timeline.span("md5")
    with pytest.raises(KeyError):
        _ = timeline.launch


def test_a_part_without_its_end_is_no_span() -> None:
    from bench.timeline import Mark, Timeline

    with pytest.raises(KeyError):
        Timeline([Mark("END", "sh", 1, 1), Mark("BEGIN", "sh", 2, 2)]).span("sh")


@pytest.mark.promise("P-1")
@pytest.mark.parametrize(("guest_s", "apart"), [(2.00, 0.0), (2.01, 0.0), (2.10, 0.045), (1.90, 0.045)])
def test_clocks_may_differ_by_a_step_of_uptime(guest_s: float, apart: float) -> None:
    from bench.timeline import Span

    assert Span("sh", guest_s, 2.0).disagreement() == pytest.approx(apart, abs=1e-9)


def test_a_program_that_fails_or_hangs_is_reported_with_its_last_words(tmp_path: Path) -> None:
    from bench.timeline import watch
    from pyhv.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem, match=r"code 3.*\n.*no such thing"):
        watch(["sh", "-c", "echo no such thing >&2; exit 3"], tmp_path, 10)
    with pytest.raises(EnvironmentProblem, match=r"did not end in 0 s.*\n.*going on"):
        watch(["sh", "-c", "echo going on; exec sleep 30"], tmp_path, 0.3)


@pytest.mark.promise("P-1")
def test_the_result_is_the_median_of_ratios_and_not_the_ratio_of_medians() -> None:
    from bench.report import Pair, rows

    (row,) = rows([Pair("fork", 1.0, 2.0), Pair("fork", 4.0, 5.0), Pair("fork", 9.0, 3.0)])
    assert row.ratio == pytest.approx(0.8)
    assert (row.ours, row.theirs, row.pairs) == (4.0, 3.0, 3)
    assert (row.lowest, row.highest) == (0.5, 3.0)


@pytest.mark.promise("P-1")
def test_the_peer_is_never_virtualized_by_hardware() -> None:
    from bench.peer import Peer

    command = Peer(Path("x"), Path("k"), Path("i"), 256).command("sys")
    assert command[command.index("-accel") + 1] == "tcg"
    assert "kernel console=hvc0 w=sys,initramfs" in command
    assert not any("kvm" in word for word in command)


@pytest.mark.promise("P-1")
def test_qemu_without_xen_has_the_same_processor_and_kernel() -> None:
    from bench.peer import Alone, Peer

    command = Alone(Path("/k"), Path("/i"), 256).command("sys")
    assert command[command.index("-append") + 1] == "console=ttyS0 w=sys"
    assert command[command.index("-m") + 1] == "256"
    assert "-accel tcg" in " ".join(command)
    peer = Peer(Path("x"), Path("/k"), Path("/i"), 256).command("sys")
    assert [word for word in command if word in peer[: peer.index("-kernel")]] == [
        word for word in peer[: peer.index("-kernel")] if word != "512"
    ]


def test_every_part_that_is_timed_is_in_the_script() -> None:
    from bench.contest import WORKLOADS
    from pyhv.images.initramfs import INIT

    for workload, parts in WORKLOADS.items():
        assert f"    {workload}) " in INIT
        assert all(f"part {name} " in INIT for name in parts)


@pytest.mark.parametrize("virtual_time", [False, True])
def test_each_kind_of_exit_takes_time(tmp_path: Path, virtual_time: bool) -> None:
    """A line that came late, or with another one, would make a kind cost nothing. (RDTSC may be free.)"""
    from bench.micro import EXITS, run_guest
    from pyhv.guests.build import build
    from pyhv.loader.elf import load_image

    shorter = tmp_path / "exits.S"
    source = EXITS.read_text(encoding="utf-8")
    shorter.write_text(source.replace(".set ROUNDS, 20000", ".set ROUNDS, 400"), encoding="utf-8")
    found = run_guest(load_image(build(shorter), "exits"), virtual_time=virtual_time)
    free = ("nothing", "RDTSC")
    assert len(found.thread_us) == 14
    assert all(us > 0.5 for name, us in found.thread_us.items() if name not in free), found.thread_us
    assert found.thread_us["pin and unpin an L4, 11 tables"] > 20 * found.thread_us["hypercall (xen_version)"]


@pytest.mark.parametrize("name", ["exits", "work"])
def test_the_guests_can_be_built(name: str) -> None:
    from pyhv.guests.build import build
    from pyhv.loader.elf import load_image

    image = load_image(build(PROJECT / "bench" / "guests" / f"{name}.S"), name)
    assert image.segments


def test_bare_code_and_python_compute_the_same() -> None:
    from bench.bare import Bare, load_work

    mask, table, total = (1 << 64) - 1, [0] * 4096, 0x9E37_79B9_7F4A_7C15
    for left in (2, 1):
        for index in range(4096):
            total = (total * 31 + table[index]) & mask
            total = (total << 7 | total >> 57) & mask
            table[index] = total
            if total & 1:
                total = ((total ^ (4096 - index)) + left) & mask
    for count_blocks in (False, True):
        engine = Bare(load_work(), count_blocks=count_blocks)
        try:
            assert engine.run(2).result == total
        finally:
            engine.close()


def test_what_others_use_is_what_is_busy_and_not_ours() -> None:
    from bench.load import Moment

    began = Moment(wall=10.0, busy=100.0, own=1.0)
    assert began.others(Moment(wall=14.0, busy=105.0, own=4.0)) == pytest.approx(0.5)
    assert began.others(Moment(wall=14.0, busy=102.9, own=4.0)) == 0.0


def test_a_programs_user_time_is_counted(tmp_path: Path) -> None:
    import sys

    from bench.load import user_seconds
    from bench.timeline import watch

    busy = "x = sum(number % 7 for number in range(4_000_000))\nprint('PYHV-INIT-OK 1.00', flush=True)"
    found = watch([sys.executable, "-c", busy], tmp_path, 60)
    assert 0.05 <= found.launch.user_s <= found.launch.host_s + 0.02
    assert user_seconds(2**22 + 1) == 0.0


def test_pyhv_is_run_in_the_lane_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import guest
    from bench.timeline import Timeline

    seen: list[tuple[str, bool]] = []

    def run(arguments: list[str], _timeout: float, lane: str = "") -> Timeline:
        seen.append((lane, "--no-engine-tuning" not in arguments))
        return Timeline()

    monkeypatch.setattr(guest, "run_in_project", run)
    for label in ("native+tuned", "plain+tuned", "native+untuned"):
        guest.Pyhv(Path("k"), Path("i"), 256, label).run("boot", 1)
    assert seen == [("native", True), ("plain", True), ("native", False)]


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_pyhv_is_run_by_the_clock_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, clock: str) -> None:
    from bench import guest
    from bench.timeline import Timeline

    seen: list[str] = []
    monkeypatch.setattr(guest, "run_in_project", lambda words, *_more: seen.extend(words) or Timeline())
    one = guest.Pyhv(Path("k"), Path("i"), 256, clock=clock)
    one.run("boot", 1)
    assert [word for word in seen if word.endswith("-time")] == [f"--{clock}-time"]
    assert one.guest_clock_is_real == (clock == "real")
    assert "--record" not in seen


def test_a_recorded_run_is_another_contestant() -> None:
    from bench.guest import Pyhv

    plain = Pyhv(Path("k"), Path("i"), 256)
    recorded = Pyhv(Path("k"), Path("i"), 256, recording=Path("run.pyhv"))
    assert recorded.label == f"{plain.label}, recorded"
    assert recorded.arguments("fork") == [*plain.arguments("fork"), "--record", "run.pyhv"]


@pytest.mark.parametrize(
    ("option", "given", "sentence"),
    [
        ("--lanes", "native+tuned,fast", "pyhv cannot be run as 'fast'; there are native+tuned, plain+tuned"),
        ("--clocks", "wall", "there is no 'wall' time; there are real, virtual."),
        ("--workloads", "sys,forks", "there is no workload 'forks'; there are boot, sys"),
    ],
)
def test_what_there_is_not_is_refused(option: str, given: str, sentence: str) -> None:
    from click.testing import CliRunner

    from bench.__main__ import main

    done = CliRunner().invoke(main, ["peer", option, given])
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.replace("│", " ").split())


class Told:
    """A contestant whose launch takes as long as it is told."""

    def __init__(self, label: str, seconds: float, others: float = 0.0, clock_factor: float = 1.0) -> None:
        self.label = label
        self.guest_clock_is_real = clock_factor == 1.0 or label.startswith("wrong")
        self._seconds, self._others, self._factor = seconds, others, clock_factor
        self.ran: list[str] = []

    def run(self, workload: str, _timeout_s: float) -> Any:
        from bench.contest import WORKLOADS
        from bench.timeline import Mark, Timeline

        self.ran.append(workload)
        now = self._seconds
        marks = [Mark("INIT-OK", "", now, now, now / 2)]
        for name in WORKLOADS[workload]:
            for kind in ("BEGIN", "END"):
                marks.append(Mark(kind, name, now * self._factor, now, now / 2))
                now += self._seconds
        return Timeline(marks, now, self._others)


def results(*, others: float = 0.0) -> Any:
    """pyhv in two lanes by both clocks, the peer and QEMU alone: 1, 3, 2, 6, 4 and 0.5 s."""
    from bench.against import Results
    from bench.contest import measure
    from bench.guest import Pyhv

    ours = [
        Pyhv(Path("k"), Path("i"), 256, lane, clock)
        for lane in ("native+tuned", "plain+tuned")
        for clock in ("real", "virtual")
    ]
    told = [Told(one.label, seconds) for one, seconds in zip(ours, (1.0, 2.0, 3.0, 6.0), strict=True)]
    measured = measure(
        [*told, Told("peer", 4.0, others), Told("alone", 0.5)], 2, ["boot", "sys"], 1, lambda _: None
    )
    return Results(measured, ours, "peer", "alone")


def test_each_lane_and_clock_is_compared_with_the_same_run_of_the_peer_and_written_into_the_page(
    tmp_path: Path,
) -> None:
    from bench.page import publish

    page = tmp_path / "page.md"
    places = ("peer, real time", "peer, virtual time", "virtual time")
    page.write_text(
        "before\n" + "".join(f"<!-- bench: {name} -->\nold\n<!-- end -->\nafter\n" for name in places),
        encoding="utf-8",
    )
    found = results()
    publish(page, found.measured.busy(), found.tables())
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- bench: peer, real time -->\nMeasured on ")
    assert text.endswith("<!-- end -->\nafter\n")
    assert text.count("Measured on ") == 3
    assert "old" not in text
    real, virtual, clocks = text.split("<!-- end -->\n")[:3]
    row = "| launch | native+tuned | 4 | 1.00 | 0.50 | 4.00 | 2.00 | **0.25** | 0.25 .. 0.25 | 0.25 | 2.00 |"
    assert row in real
    assert "| sys | plain+tuned | 2 | 3.00 | 1.50 | 4.00 | 2.00 | **0.75** |" in real
    assert "| launch | native+tuned | 4 | 2.00 | 1.00 | 4.00 | 2.00 | **0.50** |" in virtual
    assert "| launch | plain+tuned | 4 | 6.00 | 3.00 | 3.00 | 1.50 | **2.00** |" in clocks
    assert "QEMU" not in clocks


def test_what_was_measured_on_a_busy_host_is_not_written(tmp_path: Path) -> None:
    from bench.page import publish
    from pyhv.errors import EnvironmentProblem

    busy = results(others=0.3).measured.busy()
    with pytest.raises(
        EnvironmentProblem, match=r"page\.md is not written: other programs kept 0\.30 processors"
    ):
        publish(tmp_path / "page.md", busy, {})
    assert not (tmp_path / "page.md").exists()


def test_contestants_run_in_turn_and_their_clocks_are_compared() -> None:
    from bench.contest import measure

    right, wrong, virtual = Told("right", 2.0), Told("wrong", 2.0, 0, 1.1), Told("virtual", 2.0, 0, 1.1)
    found = measure([right, wrong, virtual], 2, ["boot", "sys"], 1, lambda _: None)
    assert right.ran == wrong.ran == ["boot", "sys", "boot", "sys"]
    assert [text.partition(",")[2].partition(":")[0] for text in found.warnings] == [" wrong, sys"] * 2
    assert len(found.spans()) == 2 * 3 * 3


@pytest.mark.parametrize(
    ("others", "runs", "counts"),
    [((0.0, 9.9), 1, 0.0), ((0.3, 0.05), 2, 0.05), ((0.3, 0.2, 0.4, 0.2, 0.3), 5, 0.2)],
)
def test_a_disturbed_run_is_made_again(others: tuple[float, ...], runs: int, counts: float) -> None:
    from bench.contest import measure

    class Disturbed(Told):
        def run(self, workload: str, timeout_s: float) -> Any:
            self._others = others[len(self.ran)]
            return super().run(workload, timeout_s)

    told, heard = Disturbed("pyhv", 1.0), list[str]()
    found = measure([told], 1, ["boot"], 1, heard.append)
    assert len(told.ran) == runs
    assert found.others == counts
    assert ["once more" in line for line in heard] == [True] * (runs - 1) + [False]


def test_a_run_that_lacks_a_part_ends_the_measurement() -> None:
    from bench.contest import Round
    from bench.timeline import Timeline
    from pyhv.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem, match=r"peer ended without having printed the lines of 'PYHV-IN"):
        Round(1, "sys", {"peer": Timeline()}).span("peer", "launch")


def test_the_page_has_a_part_for_each_table() -> None:
    from bench.page import replaced
    from pyhv.errors import EnvironmentProblem

    text = (PROJECT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    tables = (
        "peer, real time",
        "peer, virtual time",
        "virtual time",
        "exits",
        "computing",
        "hello",
        "moments",
        "recording",
    )
    for name in tables:
        assert "new table" in replaced(text, name, "new table\n")
    with pytest.raises(EnvironmentProblem, match="no part between"):
        replaced(text, "weather", "")


def test_a_page_without_a_place_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from bench.__main__ import main
    from pyhv.errors import EnvironmentProblem

    (tmp_path / "page.md").write_text("nothing\n", encoding="utf-8")
    done = CliRunner().invoke(main, ["peer", "--write", str(tmp_path / "page.md")])
    assert isinstance(done.exception, EnvironmentProblem)
    assert "no part between '<!-- bench: peer, real time -->'" in str(done.exception)


@pytest.mark.parametrize(
    ("now", "before", "verdict"),
    [
        (10.0, None, "not recorded"),
        (10.0, 10.0, "1.00"),
        (13.0, 10.0, "1.30 slower"),
        (7.0, 10.0, "0.70 faster"),
    ],
)
def test_a_look_at_ratios_says_what_has_changed(now: float, before: float | None, verdict: str) -> None:
    from bench import quick

    assert quick.verdict(now, before) == verdict


def test_ratios_are_recorded_by_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import quick

    monkeypatch.setattr(quick, "RECORDED", tmp_path / "quick.json")
    assert quick.recorded("plain") == {}
    quick.record("plain", [quick.Quick("iret", 1.0, 12.34)])
    quick.record("native", [quick.Quick("iret", 0.5, 6.0)])
    assert quick.recorded("plain") == {"iret": 12.3}
    assert quick.recorded("native") == {"iret": 6.0}


def test_a_step_takes_time() -> None:
    from bench import quick

    assert 0.005 < quick.step_us() < 50
