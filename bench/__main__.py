# SPDX-License-Identifier: GPL-2.0-only
"""`python -m bench peer|micro|quick|moments` (docs/benchmarks.md), `compatibility` (its own page)."""

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from bench import packages, page, report
from bench.guest import LANES, Pyhv
from bench.load import MOST_OTHERS
from bench.peer import Peer, require_qemu
from bench.report import Pair
from bench.timeline import Span, Timeline
from pyhv.cli.messages import PlainProgress
from pyhv.errors import EnvironmentProblem, PyhvError
from pyhv.images import debian
from pyhv.lane import ACTIVE

WORKLOADS: dict[str, tuple[str, ...]] = {
    "boot": (),
    "sys": ("sys",),
    "fork": ("fork",),
    "cpu": ("sh", "awk", "md5", "sha256"),
}
"""Values of `w=`, and the parts that each times. Every run times the launch as well."""
MEMORY_MIB = 256
MAX_DISAGREEMENT = 0.02
COMPARED_FROM_S = 1.0
"""Parts that are shorter say nothing about the agreement of clocks."""
COMPUTE_GOAL = 1.05
JsonPath = click.Path(dir_okay=False, writable=True, path_type=Path)


def _workload_list(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    """Names of workloads with commas in between; refuse one that is not in the table."""
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in WORKLOADS:
            raise click.BadParameter(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}.")
    return names


def _lane_list(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    """Ways to run pyhv with commas in between; refuse one that there is not."""
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in LANES:
            raise click.BadParameter(f"pyhv cannot be run as {name!r}; there are {', '.join(LANES)}.")
    return names


@dataclass
class Measurement:
    """What the runs have given so far."""

    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    """By the way in which pyhv ran, of `LANES`."""
    spans: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    others: float = 0.0
    """Processors that others kept busy, in the worst run."""

    def add(
        self, number: int, workload: str, ours: dict[str, Timeline], theirs: Timeline, real: bool
    ) -> None:
        """Runs that are neighbours: pyhv in each way, and the peer."""
        self.others = max(self.others, theirs.others, *(run.others for run in ours.values()))
        for metric in ("launch", *WORKLOADS[workload]):
            other = _span(theirs, metric, "the peer")
            self._keep(number, workload, "peer", other, real=metric != "launch")
            for label, timeline in ours.items():
                mine = _span(timeline, metric, "pyhv")
                self._keep(number, workload, label, mine, real=real and metric != "launch")
                pair = Pair(metric, mine.host_s, other.host_s, mine.user_s, other.user_s)
                self.pairs.setdefault(label, []).append(pair)

    def _keep(self, number: int, workload: str, subject: str, span: Span, *, real: bool) -> None:
        self.spans.append({"pair": number, "workload": workload, "subject": subject, **asdict(span)})
        if real:
            self._compare_clocks(number, subject, span)

    def busy(self) -> str:
        """A sentence if others kept the host so busy that nothing of this is to be quoted; else empty."""
        if self.others <= MOST_OTHERS:
            return ""
        return (
            f"other programs kept {self.others:.2f} processors busy during a run, and"
            f" {MOST_OTHERS:.2f} is the most for figures that are to be quoted"
        )

    def _compare_clocks(self, number: int, subject: str, span: Span) -> None:
        if max(span.host_s, span.guest_s) > COMPARED_FROM_S and span.disagreement() > MAX_DISAGREEMENT:
            self.warnings.append(
                f"pair {number}, {subject}, {span.name}: {span.guest_s:.2f} s by the guest's clock but"
                f" {span.host_s:.2f} s by the host's, which is more than {MAX_DISAGREEMENT:.0%} apart"
            )


def _span(timeline: Timeline, metric: str, subject: str) -> Span:
    try:
        return timeline.launch if metric == "launch" else timeline.span(metric)
    except KeyError as missing:
        raise EnvironmentProblem(
            f"{subject} ended without having printed the lines of {missing.args[0]!r}"
        ) from missing


def _say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure pyhv: against real Xen in an emulator, and part by part."""


@main.command()
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Runs of each workload.")
@click.option(
    "--workloads",
    metavar="NAMES",
    default=",".join(WORKLOADS),
    callback=_workload_list,
    show_default=True,
    help="Which ones, with commas in between.",
)
@click.option("--virtual-time", is_flag=True, help="Run pyhv with --virtual-time instead of --real-time.")
@click.option("--uncompressed", is_flag=True, help="Give both the unpacked kernel instead of the bzImage.")
@click.option(
    "--xen",
    "own_xen",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Xen 4.17 of your own instead of Debian's.",
)
@click.option(
    "--lanes",
    metavar="NAMES",
    default=next(iter(LANES)),
    callback=_lane_list,
    show_default=True,
    help=f"How pyhv is run, each for itself: {', '.join(LANES)}.",
)
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds for one run.")
@click.option("--json", "json_path", type=JsonPath, help="Write everything that was measured to a file.")
@click.option(
    "--write", "page_path", type=JsonPath, help="Write the table into that page: docs/benchmarks.md."
)
def peer(
    pairs: int,
    workloads: list[str],
    lanes: list[str],
    virtual_time: bool,
    uncompressed: bool,
    own_xen: Path | None,
    timeout: float,
    json_path: Path | None,
    page_path: Path | None,
) -> None:
    """Compare pyhv with Xen 4.17 under QEMU's emulation: same kernel, same initramfs, runs in turn.

    Prints, for each workload, the median of the ratios of the pairs: below 1, pyhv is faster.
    """
    qemu = require_qemu()
    files = debian.ensure(PlainProgress())
    kernel = files.vmlinux if uncompressed else files.vmlinuz
    warning = report.load_warning()
    if warning:
        _say(f"warning: {warning}")
    with tempfile.TemporaryDirectory(prefix="pyhv-bench-") as scratch:
        xen = packages.xen() if own_xen is None else packages.unpacked(own_xen, Path(scratch))
        ours = [Pyhv(kernel, files.initramfs, MEMORY_MIB, virtual_time, label) for label in lanes]
        theirs = Peer(xen, kernel, files.initramfs, MEMORY_MIB)
        host = report.host()
        measured = _measure(ours, theirs, pairs, workloads, timeout)
    for text in measured.warnings:
        _say(f"warning: {text}")
    found = [(label, report.rows(measured.pairs[label])) for label in lanes]
    clock = "virtual" if virtual_time else "real"
    console = report.console()
    console.print(
        f"pyhv ({clock} time) against Xen 4.17 under QEMU TCG; Debian {files.version}, {kernel.name}",
        highlight=False,
    )
    for label, rows in found:
        console.print(f"pyhv: {label}", highlight=False)
        console.print(report.ratio_table("pyhv", "peer", rows))
    if json_path is not None:
        content = {
            "kind": "peer", "clock": clock, "kernel": f"{kernel.name} {files.version}", "xen": xen.name,
            "qemu": qemu, "host": host, "rows": dict(found), "spans": measured.spans,
            "others": measured.others, "quotable": not measured.busy(), "warnings": measured.warnings,
        }  # fmt: skip
        report.write_json(json_path, content)
    _publish(page_path, f"peer, {clock} time", measured, found)


def _publish(
    path: Path | None, name: str, measured: Measurement, found: list[tuple[str, list[report.Row]]]
) -> None:
    """Write the page, unless others were busy on the host: then say so, and do not."""
    busy = measured.busy()
    if busy:
        _say(f"not to be quoted: {busy}")
    if path is None:
        return
    if busy:
        raise EnvironmentProblem(f"{path} is not written: {busy}.")
    page.write(path, name, page.ratios(report.conditions(), found))


def _measure(ours: list[Pyhv], theirs: Peer, pairs: int, workloads: list[str], timeout: float) -> Measurement:
    """Ours, theirs, ours, theirs: neighbours in time are compared."""
    measured = Measurement()
    for number in range(1, pairs + 1):
        for workload in workloads:
            mine = {one.label: one.run(workload, timeout) for one in ours}
            other = theirs.run(workload, timeout)
            measured.add(number, workload, mine, other, ours[0].guest_clock_is_real)
            _say(f"pair {number} of {pairs}, {workload}: {_brief(measured, workload)}")
    return measured


def _brief(measured: Measurement, workload: str) -> str:
    count = 1 + len(WORKLOADS[workload])
    return "; ".join(
        f"{label}: "
        + ", ".join(f"{pair.metric} {pair.ours:.2f} / {pair.theirs:.2f} s" for pair in pairs[-count:])
        for label, pairs in measured.pairs.items()
    )


@main.command()
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each measure.")
@click.option("--json", "json_path", type=JsonPath, help="Write the results to a file.")
def micro(runs: int, json_path: Path | None) -> None:
    """Measure the engine's parts: each kind of exit, plain computing, and the start of a small guest."""
    from bench import micro as parts

    warning = report.load_warning()
    if warning:
        _say(f"warning: {warning}")
    host = report.host()
    progress: Callable[[str], None] = _say
    costs = parts.exit_costs(runs, progress)
    computed = parts.compute(runs, progress)
    hello = statistics.median(parts.hello(runs, progress))
    python = parts.python_start(runs)
    found = report.rows(computed.real + computed.virtual)

    console = report.console()
    console.print("what an exit costs (medians)", highlight=False)
    console.print(report.cost_table(costs))
    console.print("a PV guest against the bare engine with the same clock", highlight=False)
    console.print(report.ratio_table("guest", "bare", found))
    for row in found:
        verdict = "within" if row.ratio <= COMPUTE_GOAL else "NOT within"
        console.print(
            f"{row.metric}: {computed.mips(row.ours):.0f} MIPS as a guest,"
            f" {computed.mips(row.theirs):.0f} bare; {verdict} the goal of {COMPUTE_GOAL:.2f}",
            highlight=False,
        )
    console.print(
        f"pyhv boot hello: {hello:.2f} s from command to exit ({python:.2f} s of it Python's own start)",
        highlight=False,
    )
    if json_path is not None:
        content = {
            "kind": "micro", "host": host, "exits": costs, "compute": found,
            "compute_instructions": computed.instructions, "hello_s": hello, "python_s": python,
        }  # fmt: skip
        report.write_json(json_path, content)


@main.command()
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each measure.")
@click.option("--record", is_flag=True, help="Have later runs in this lane compared with this one.")
def quick(runs: int, record: bool) -> None:
    """Measure exits against plain Python in this process, in half a minute: has something got slower?"""
    from bench import quick as parts

    found = parts.measure(runs, _say)
    lane = ACTIVE.name
    before = parts.recorded(lane)
    table = Table("kind of exit", "us of CPU", "in steps of Python", "recorded", "now / recorded")
    for one in found:
        known = before.get(one.name)
        table.add_row(
            one.name, f"{one.us:.2f}", f"{one.steps:.1f}", f"{known:.1f}" if known else "-",
            parts.verdict(one.steps, known),
        )  # fmt: skip
    console = report.console()
    console.print(f"exits in the {lane} lane (medians of {runs})", highlight=False)
    console.print(table)
    if record:
        parts.record(lane, found)


@main.command()
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each measure.")
@click.option("--json", "json_path", type=JsonPath, help="Write the results to a file.")
def moments(runs: int, json_path: Path | None) -> None:
    """Measure snapshots of a Linux guest, an idle one, and what 2,000 lives of small guests leave."""
    from bench import idle
    from bench import moments as parts

    warning = report.load_warning()
    if warning:
        _say(f"warning: {warning}")
    found = [*parts.linux(runs), *idle.sleep(), *idle.memory(), *parts.lives()]
    console = report.console()
    for one in found:
        bound = "" if one.most is None else f"   (at most {one.most:,.0f})"
        console.print(f"{one.name:44} {one.value:10,.1f} {one.unit}{bound}", highlight=False)
    if json_path is not None:
        content = {"kind": "moments", "host": report.host(), "moments": [asdict(one) for one in found]}
        report.write_json(json_path, content)


@main.command()
@click.option("--only", metavar="TEXT", default="", help="Just the kernels whose names contain that.")
@click.option("--timeout", type=float, default=90.0, show_default=True, help="Seconds to wait for a step.")
@click.option("--write", "page_path", type=JsonPath, help="Write the page, instead of to standard output.")
def compatibility(only: str, timeout: float, page_path: Path | None) -> None:
    """Boot every kernel that can be had and write the table of docs/compatibility.md."""
    from bench import compatibility as kernels

    results = []
    for subject in kernels.subjects():
        if only in subject.name:
            results.append(kernels.run(subject, PlainProgress(), timeout))
            _say(kernels.brief(results[-1]))
    text = kernels.document(results, report.conditions())
    if page_path is None:
        click.echo(text)
    else:
        page_path.write_text(text, encoding="utf-8")


def run() -> None:
    """The command; a mistake or a lack is told in one sentence."""
    try:
        main()
    except PyhvError as error:
        _say(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
