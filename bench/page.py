# SPDX-License-Identifier: GPL-2.0-only
"""Tables of docs/benchmarks.md, written by what measured them, in marked parts of the page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.report import Cost, Figure, Row, Start, say
from pyhv.errors import EnvironmentProblem


def replaced(page: str, name: str, content: str) -> str:
    """The page with another content between `<!-- bench: NAME -->` and the next `<!-- end -->`."""
    begin, end = f"<!-- bench: {name} -->\n", "<!-- end -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise EnvironmentProblem(f"the page has no part between '{begin.strip()}' and '{end.strip()}'")
    return f"{before}{begin}{content}{end}{after}"


def check(path: Path, names: Sequence[str]) -> None:
    """EnvironmentProblem if the page cannot be read, or lacks one of these parts."""
    _rewritten(path, dict.fromkeys(names, ""))


def write(path: Path, contents: Mapping[str, str]) -> None:
    """Put contents into a page, by the names of its parts: all, or none. EnvironmentProblem."""
    text = _rewritten(path, contents)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be written: {error.strerror}") from error


def publish(path: Path | None, busy: str, contents: Mapping[str, str]) -> None:
    """Write the page, if there is one; not if the host was busy: then say so. EnvironmentProblem."""
    if busy:
        say(f"not to be quoted: {busy}")
    if path is None:
        return
    if busy:
        raise EnvironmentProblem(f"{path} is not written: {busy}.")
    write(path, contents)


def _rewritten(path: Path, contents: Mapping[str, str]) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be read: {error.strerror}") from error
    for name, content in contents.items():
        text = replaced(text, name, content)
    return text


def against_peer(conditions: str, found: Sequence[tuple[str, Sequence[Row], Sequence[Row]]]) -> str:
    """Each way of running pyhv against the peer, and against QEMU alone if there are such rows."""
    heads = [*_heads("pyhv", "peer"), "pyhv / QEMU alone"]
    return table(
        conditions,
        heads,
        [
            [*_cells(label, row), f"{alone[index].ratio:.2f}" if alone else "-"]
            for index in range(len(found[0][1]))
            for label, peer, alone in found
            for row in [peer[index]]
        ],
    )


def compared(conditions: str, ours: str, theirs: str, found: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """Two things of pyhv's own, for each way of running it."""
    lines = [_cells(label, rows[index]) for index in range(len(found[0][1])) for label, rows in found]
    return table(conditions, _heads(ours, theirs), lines)


def costs(conditions: str, found: Sequence[Cost]) -> str:
    """What each kind of exit costs."""
    lines = [[cost.name, f"{cost.real_us:.2f}", f"{cost.virtual_us:.2f}"] for cost in found]
    return table(conditions, ["kind of exit", "real time, us", "virtual time, us"], lines)


def lanes(known: Mapping[str, Mapping[str, float]]) -> str:
    """What each kind of exit costs in each lane, in steps of plain Python."""
    kinds = list(dict.fromkeys(kind for costs in known.values() for kind in costs))
    lines = [
        [kind, *(f"{costs[kind]:.1f}" if kind in costs else "-" for costs in known.values())]
        for kind in kinds
    ]
    sentence = "In steps of plain Python, as recorded in `bench/quick.json`."
    return table(sentence, ["kind of exit", *(f"{lane} lane" for lane in known)], lines)


def computing(conditions: str, found: Sequence[Row], mips: Callable[[float], float]) -> str:
    """The same code as a guest and on the bare engine; `mips` turns its seconds into its speed."""
    lines = [
        [
            row.metric, str(row.pairs), f"{mips(row.ours_user):.0f}", f"{mips(row.theirs_user):.0f}",
            f"{row.ratio:.2f}", f"**{row.user_ratio:.2f}**",
        ]
        for row in found
    ]  # fmt: skip
    heads = ["", "pairs", "guest MIPS", "bare MIPS", "guest / bare", "by user time"]
    return table(conditions, heads, lines)


def starts(conditions: str, found: Sequence[Start]) -> str:
    """Commands that start and end."""
    lines = [[one.name, f"{one.seconds:.2f}", f"{one.user_s:.2f}"] for one in found]
    return table(conditions, ["command", "s", "(user)"], lines)


def figures(conditions: str, found: Sequence[Figure]) -> str:
    """What is one number, and what it must not exceed."""
    lines = [
        [one.name, f"{one.value:,.1f} {one.unit}", "" if one.most is None else f"{one.most:,.0f} {one.unit}"]
        for one in found
    ]
    return table(conditions, ["", "measured", "at most"], lines)


def _heads(ours: str, theirs: str) -> list[str]:
    return [
        "metric", "pyhv as", "pairs", f"{ours} s", "(user)", f"{theirs} s", "(user)", f"{ours} / {theirs}",
        "lowest .. highest", "by user time",
    ]  # fmt: skip


def _cells(label: str, row: Row) -> list[str]:
    return [
        row.metric, label, str(row.pairs), f"{row.ours:.2f}", f"{row.ours_user:.2f}", f"{row.theirs:.2f}",
        f"{row.theirs_user:.2f}", f"**{row.ratio:.2f}**", f"{row.lowest:.2f} .. {row.highest:.2f}",
        f"{row.user_ratio:.2f}" if row.user_ratio else "-",
    ]  # fmt: skip


def table(conditions: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A sentence and a table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return f"{conditions}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
