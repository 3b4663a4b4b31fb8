# SPDX-License-Identifier: GPL-2.0-only
"""`python -m bench peer|micro|quick|moments` (docs/benchmarks.md), `flame` (docs/performance.md), ..."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from bench import page, report
from bench.against import MEMORY_MIB, peer
from bench.load import Moment, busy
from bench.report import say
from pyhv.cli.messages import PlainProgress
from pyhv.errors import PyhvError
from pyhv.images import debian
from pyhv.lane import ACTIVE

COMPUTE_GOAL = 1.03


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure pyhv: against real Xen in an emulator, and part by part."""


main.add_command(peer)


def _of_tables(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of one that writes tables."""
    for option in (
        click.option(
            "--write", "page_path", type=report.OUTPUT_FILE,
            help="Write the tables into that page: docs/benchmarks.md.",
        ),
        click.option("--json", "json_path", type=report.OUTPUT_FILE, help="Write the results to a file."),
    ):  # fmt: skip
        command = option(command)
    return command


def _of_measures(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of one that measures several times and writes tables."""
    runs = click.option(
        "--runs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each measure."
    )
    return runs(_of_tables(command))


@main.command()
@_of_measures
def micro(runs: int, json_path: Path | None, page_path: Path | None) -> None:
    """Measure the engine's parts: each kind of exit, plain computing, and the start of a small guest."""
    from bench import micro as parts

    _prepare(page_path, ["exits", "computing", "hello"])
    host, began = report.host(), Moment.now()
    costs = parts.exit_costs(runs, say)
    computed = parts.compute(runs, say)
    starts = [parts.hello(runs, say), parts.python_start(runs)]
    others = began.others(Moment.now())
    found = report.rows(computed.real + computed.virtual)

    console = report.console()
    console.print("what an exit costs (medians)", highlight=False)
    console.print(report.cost_table(costs))
    console.print("a PV guest against the bare engine with the same clock", highlight=False)
    console.print(report.ratio_table("guest", "bare", found))
    for row in found:
        verdict = "within" if row.user_ratio <= COMPUTE_GOAL else "NOT within"
        console.print(
            f"{row.metric}: {computed.mips(row.ours_user):.0f} MIPS as a guest,"
            f" {computed.mips(row.theirs_user):.0f} bare; {verdict} the goal of {COMPUTE_GOAL:.2f}",
            highlight=False,
        )
    for start in starts:
        console.print(
            f"{start.name}: {start.seconds:.2f} s, {start.user_s:.2f} s of them in user mode", highlight=False
        )
    if json_path is not None:
        content = {
            "kind": "micro", "host": host, "exits": costs, "compute": found,
            "compute_instructions": computed.instructions, "starts": starts, "others": others,
        }  # fmt: skip
        report.write_json(json_path, content)
    conditions = report.conditions(ACTIVE.name)
    tables = {
        "exits": page.costs(conditions, costs),
        "computing": page.computing(conditions, found, computed.mips),
        "hello": page.starts(conditions, starts),
    }
    page.publish(page_path, busy(others), tables)


def _prepare(page_path: Path | None, names: list[str]) -> None:
    """Say if the host is busy, and refuse a page that has no place for these tables."""
    if warning := report.load_warning():
        say(f"warning: {warning}")
    if page_path is not None:
        page.check(page_path, names)


@main.command()
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each measure.")
@click.option("--record", is_flag=True, help="Have later runs in this lane compared with this one.")
@click.option(
    "--write",
    "page_path",
    type=report.OUTPUT_FILE,
    help="Write what is recorded into that page: docs/performance.md.",
)
def quick(runs: int, record: bool, page_path: Path | None) -> None:
    """Measure exits against plain Python in this process, in half a minute: has something got slower?"""
    from bench import quick as parts

    found = parts.measure(runs, say)
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
    if page_path is not None:
        page.write(page_path, {"exits": page.lanes(parts.all_recorded())})


@main.command()
@_of_measures
def moments(runs: int, json_path: Path | None, page_path: Path | None) -> None:
    """Measure snapshots of a Linux guest, an idle one, and what 2,000 lives of small guests leave."""
    from bench import idle
    from bench import moments as parts

    _prepare(page_path, ["moments"])
    began = Moment.now()
    found = [*parts.linux(runs), *idle.sleep(), *idle.memory(), *parts.lives()]
    others = began.others(Moment.now())
    console = report.console()
    for one in found:
        bound = "" if one.most is None else f"   (at most {one.most:,.0f})"
        console.print(f"{one.name:44} {one.value:10,.1f} {one.unit}{bound}", highlight=False)
    if json_path is not None:
        content = {
            "kind": "moments", "host": report.host(), "moments": [asdict(one) for one in found],
            "others": others,
        }  # fmt: skip
        report.write_json(json_path, content)
    page.publish(page_path, busy(others), {"moments": page.figures(report.conditions(ACTIVE.name), found)})


@main.command()
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each workload.")
@_of_tables
def recording(pairs: int, json_path: Path | None, page_path: Path | None) -> None:
    """Measure what `--record` costs: the same workloads recorded and not, in turn."""
    from bench import recording as parts

    _prepare(page_path, ["recording"])
    found = parts.measure(pairs, say)
    console = report.console()
    for clock, rows in found.by_clock():
        console.print(f"{clock} time", highlight=False)
        console.print(report.ratio_table("recorded", "not", rows))
    if json_path is not None:
        content = {
            "kind": "recording", "host": report.host(), "rows": dict(found.by_clock()),
            "others": found.measured.others,
        }  # fmt: skip
        report.write_json(json_path, content)
    table = page.compared(report.conditions(ACTIVE.name), "recorded", "not", found.by_clock())
    page.publish(page_path, found.measured.busy(), {"recording": table})


@main.command()
@click.argument("workload", type=click.Choice(["boot", "fork", "sys"]))
@click.option("--write", "svg_path", type=report.OUTPUT_FILE, required=True, help="The SVG to write.")
def flame(workload: str, svg_path: Path) -> None:
    """Draw where the time of a workload goes, as a flame graph: a boot, or a workload without its boot."""
    from bench import flame as parts
    from bench.guest import VIRTUAL, Pyhv
    from bench.stacks import shares

    files = debian.ensure(PlainProgress())
    guest = Pyhv(files.vmlinuz, files.initramfs, MEMORY_MIB, f"{ACTIVE.name}+tuned", VIRTUAL)
    stacks = parts.record(guest, workload)
    title = (
        f"{workload}: Debian {files.version}, {ACTIVE.name} lane, virtual time, {stacks.total():,} samples"
    )
    svg_path.write_text(parts.draw(stacks, title), encoding="utf-8")
    for name, share in shares(stacks).items():
        click.echo(f"{name:24} {share:6.1%}")


@main.command()
@click.option("--only", metavar="TEXT", default="", help="Just the kernels whose names contain that.")
@click.option("--timeout", type=float, default=90.0, show_default=True, help="Seconds to wait for a step.")
@click.option(
    "--write", "page_path", type=report.OUTPUT_FILE, help="Write the page, instead of to standard output."
)
def compatibility(only: str, timeout: float, page_path: Path | None) -> None:
    """Boot every kernel that can be had and write the table of docs/compatibility.md."""
    from bench import compatibility as kernels

    results = []
    for subject in kernels.subjects():
        if only in subject.name:
            results.append(kernels.run(subject, PlainProgress(), timeout))
            say(kernels.brief(results[-1]))
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
        say(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
