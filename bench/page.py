# SPDX-License-Identifier: GPL-2.0-only
"""Tables of docs/benchmarks.md, written by what measured them, in a marked part of the page."""

from collections.abc import Sequence
from pathlib import Path

from bench.report import Row
from pyhv.errors import EnvironmentProblem


def replaced(page: str, name: str, content: str) -> str:
    """The page with another content between `<!-- bench: NAME -->` and the next `<!-- end -->`."""
    begin, end = f"<!-- bench: {name} -->\n", "<!-- end -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise EnvironmentProblem(f"the page has no part between '{begin.strip()}' and '{end.strip()}'")
    return f"{before}{begin}{content}{end}{after}"


def write(path: Path, name: str, content: str) -> None:
    """Put a content into a page. EnvironmentProblem."""
    try:
        path.write_text(replaced(path.read_text(encoding="utf-8"), name, content), encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be written: {error.strerror}") from error


def ratios(conditions: str, found: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """Each way of running pyhv against the peer, in one table: seconds by the clock, of user mode, ratios."""
    lines = [
        f"{conditions}\n",
        "| metric | pyhv as | pairs | pyhv s | (user) | peer s | (user) | pyhv / peer | lowest .. highest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    metrics = [row.metric for row in found[0][1]]
    for metric in metrics:
        for label, rows in found:
            row = next(row for row in rows if row.metric == metric)
            lines.append(
                f"| {metric} | {label} | {row.pairs} | {row.ours:.2f} | {row.ours_user:.2f}"
                f" | {row.theirs:.2f} | {row.theirs_user:.2f} | **{row.ratio:.2f}**"
                f" | {row.lowest:.2f} .. {row.highest:.2f} |"
            )
    return "\n".join(lines) + "\n"
