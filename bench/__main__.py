# SPDX-License-Identifier: GPL-2.0-only
"""`python -m bench peer|micro|moments` (docs/benchmarks.md) and `compatibility` (docs/compatibility.md)."""

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from bench import packages, report
from bench.guest import Pyhv
from bench.peer import Peer, require_qemu
from bench.report import Pair
from bench.timeline import Span, Timeline
from pyhv.cli.messages import PlainProgress
from pyhv.errors import EnvironmentProblem, PyhvError
from pyhv.images import debian

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


@dataclass
class Measurement:
    """What the runs have given so far."""

    pairs: list[Pair] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, number: int, workload: str, ours: Timeline, theirs: Timeline, real: bool) -> None:
        """One pair of runs."""
        for metric in ("launch", *WORKLOADS[workload]):
            mine, other = _span(ours, metric, "pyhv"), _span(theirs, metric, "the peer")
            self.pairs.append(Pair(metric, mine.host_s, other.host_s))
            for subject, span, is_real in (("pyhv", mine, real), ("peer", other, True)):
                self.spans.append({"pair": number, "workload": workload, "subject": subject, **asdict(span)})
                if is_real and metric != "launch":
                    self._compare_clocks(number, subject, span)

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
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds for one run.")
@click.option("--json", "json_path", type=JsonPath, help="Write everything that was measured to a file.")
def peer(
    pairs: int,
    workloads: list[str],
    virtual_time: bool,
    uncompressed: bool,
    own_xen: Path | None,
    timeout: float,
    json_path: Path | None,
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
        ours = Pyhv(kernel, files.initramfs, MEMORY_MIB, virtual_time)
        theirs = Peer(xen, kernel, files.initramfs, MEMORY_MIB)
        host = report.host()
        measured = _measure(ours, theirs, pairs, workloads, timeout)
    for text in measured.warnings:
        _say(f"warning: {text}")
    found = report.rows(measured.pairs)
    clock = "virtual" if virtual_time else "real"
    console = report.console()
    console.print(
        f"pyhv ({clock} time) against Xen 4.17 under QEMU TCG; Debian {files.version}, {kernel.name}",
        highlight=False,
    )
    console.print(report.ratio_table("pyhv", "peer", found))
    if json_path is not None:
        content = {
            "kind": "peer", "clock": clock, "kernel": f"{kernel.name} {files.version}", "xen": xen.name,
            "qemu": qemu, "host": host, "rows": found, "spans": measured.spans, "warnings": measured.warnings,
        }  # fmt: skip
        report.write_json(json_path, content)


def _measure(ours: Pyhv, theirs: Peer, pairs: int, workloads: list[str], timeout: float) -> Measurement:
    """Ours, theirs, ours, theirs: neighbours in time are compared."""
    measured = Measurement()
    for number in range(1, pairs + 1):
        for workload in workloads:
            mine = ours.run(workload, timeout)
            other = theirs.run(workload, timeout)
            measured.add(number, workload, mine, other, ours.guest_clock_is_real)
            _say(f"pair {number} of {pairs}, {workload}: {_brief(measured, workload)}")
    return measured


def _brief(measured: Measurement, workload: str) -> str:
    count = 1 + len(WORKLOADS[workload])
    return ", ".join(
        f"{pair.metric} {pair.ours:.2f} / {pair.theirs:.2f} s" for pair in measured.pairs[-count:]
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
@click.option("--write", "page", type=JsonPath, help="Write the page, instead of to standard output.")
def compatibility(only: str, timeout: float, page: Path | None) -> None:
    """Boot every kernel that can be had and write the table of docs/compatibility.md."""
    from bench import compatibility as kernels

    results = []
    for subject in kernels.subjects():
        if only in subject.name:
            results.append(kernels.run(subject, PlainProgress(), timeout))
            _say(kernels.brief(results[-1]))
    text = kernels.document(results, report.conditions())
    if page is None:
        click.echo(text)
    else:
        page.write_text(text, encoding="utf-8")


def run() -> None:
    """The command; a mistake or a lack is told in one sentence."""
    try:
        main()
    except PyhvError as error:
        _say(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
