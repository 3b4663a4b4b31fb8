# SPDX-License-Identifier: GPL-2.0-only
"""The measuring itself: marks and spans, ratios of pairs, and that the guests of `bench` can be built."""

from pathlib import Path

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
