# SPDX-License-Identifier: GPL-2.0-only
"""`python -m bench peer`: pyhv, in several lanes and by either clock, against Xen in an emulator or none."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from bench import contest, packages, page, report
from bench.contest import WORKLOADS, Contestant, Measurement
from bench.guest import CLOCKS, LANES, REAL, VIRTUAL, Pyhv
from bench.peer import Alone, Peer, require_qemu
from bench.report import Row, say
from pyhv.cli.messages import PlainProgress
from pyhv.images import debian

MEMORY_MIB = 256
ListOption = Callable[[click.Context, click.Parameter, str], list[str]]


def _list_of(known: Iterable[str], mistake: str) -> ListOption:
    """A callback for names with commas in between; one that is not known is refused, in those words."""
    names = tuple(known)

    def check(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
        given = list(dict.fromkeys(name.strip() for name in value.split(",")))
        for name in given:
            if name not in names:
                raise click.BadParameter(f"{mistake.format(name)}; there are {', '.join(names)}.")
        return given

    return check


@dataclass(frozen=True)
class Results:
    """A measurement, and who took part in it."""

    measured: Measurement
    ours: list[Pyhv]
    peer: str
    alone: str | None

    def others(self) -> list[str]:
        """Who is not pyhv."""
        return [self.peer, *([self.alone] if self.alone is not None else [])]

    def clocks(self) -> list[str]:
        """Those in which pyhv ran."""
        return [clock for clock in CLOCKS if any(one.clock == clock for one in self.ours)]

    def against_peer(self, clock: str) -> list[tuple[str, list[Row], list[Row]]]:
        """By the way in which pyhv ran: the peer's rows, and those of QEMU alone if it ran."""
        return [
            (
                one.lane,
                self.measured.rows(one.label, self.peer),
                self.measured.rows(one.label, self.alone) if self.alone is not None else [],
            )
            for one in self.ours
            if one.clock == clock
        ]

    def virtual_to_real(self) -> list[tuple[str, list[Row]]]:
        """By the way in which pyhv ran: virtual time against real time. Empty if it did not run in both."""
        labels = {(one.lane, one.clock): one.label for one in self.ours}
        return [
            (lane, self.measured.rows(label, labels[lane, REAL]))
            for (lane, clock), label in labels.items()
            if clock == VIRTUAL and (lane, REAL) in labels
        ]

    def tables(self) -> dict[str, str]:
        """The page's tables, by the names of their places."""
        conditions = report.conditions()
        found = [page.against_peer(conditions, self.against_peer(clock)) for clock in self.clocks()]
        if clocks := self.virtual_to_real():
            found.append(page.compared(conditions, "virtual", "real", clocks))
        return dict(zip(places(self.clocks()), found, strict=True))

    def show(self) -> None:
        """Print the tables."""
        console = report.console()
        for clock in self.clocks():
            for lane, peer, alone in self.against_peer(clock):
                console.print(f"pyhv {lane}, {clock} time", highlight=False)
                console.print(report.ratio_table("pyhv", "peer", peer))
                if alone:
                    console.print(report.ratio_table("pyhv", "QEMU", alone))
        for lane, rows in self.virtual_to_real():
            console.print(f"pyhv {lane}, virtual time against real time", highlight=False)
            console.print(report.ratio_table("virtual", "real", rows))


def places(clocks: list[str]) -> list[str]:
    """The parts of the page that a measurement with these clocks writes."""
    both = ["virtual time"] if set(clocks) == set(CLOCKS) else []
    return [*(f"peer, {clock} time" for clock in CLOCKS if clock in clocks), *both]


@click.command()
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Runs of each workload.")
@click.option(
    "--workloads",
    metavar="NAMES",
    default=",".join(WORKLOADS),
    callback=_list_of(WORKLOADS, "there is no workload {!r}"),
    show_default=True,
    help="Which ones, with commas in between.",
)
@click.option(
    "--lanes",
    metavar="NAMES",
    default=next(iter(LANES)),
    callback=_list_of(LANES, "pyhv cannot be run as {!r}"),
    show_default=True,
    help=f"How pyhv is run, each for itself: {', '.join(LANES)}.",
)
@click.option(
    "--clocks",
    metavar="NAMES",
    default=REAL,
    callback=_list_of(CLOCKS, "there is no {!r} time"),
    show_default=True,
    help="pyhv's clock: real, virtual, or real,virtual to compare the two, in the first lane.",
)
@click.option("--native", is_flag=True, help="Compare with the kernel on QEMU without Xen, too.")
@click.option("--uncompressed", is_flag=True, help="Give all the unpacked kernel instead of the bzImage.")
@click.option(
    "--xen",
    "own_xen",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Xen 4.17 of your own instead of Debian's.",
)
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds for one run.")
@click.option(
    "--json", "json_path", type=report.OUTPUT_FILE, help="Write everything that was measured to a file."
)
@click.option(
    "--write",
    "page_path",
    type=report.OUTPUT_FILE,
    help="Write the tables into that page: docs/benchmarks.md.",
)
def peer(
    pairs: int,
    workloads: list[str],
    lanes: list[str],
    clocks: list[str],
    native: bool,
    uncompressed: bool,
    own_xen: Path | None,
    timeout: float,
    json_path: Path | None,
    page_path: Path | None,
) -> None:
    """Compare pyhv with Xen 4.17 under QEMU's emulation: same kernel, same initramfs, runs in turn.

    Prints, for each workload, the median of the ratios of the pairs: below 1, pyhv is faster.
    """
    if page_path is not None:
        page.check(page_path, places(clocks))
    qemu = require_qemu()
    files = debian.ensure(PlainProgress())
    kernel = files.vmlinux if uncompressed else files.vmlinuz
    if warning := report.load_warning():
        say(f"warning: {warning}")
    with tempfile.TemporaryDirectory(prefix="pyhv-bench-") as scratch:
        xen = packages.xen() if own_xen is None else packages.unpacked(own_xen, Path(scratch))
        ways = [(lane, clock) for lane in lanes for clock in (clocks if lane == lanes[0] else clocks[:1])]
        ours = [Pyhv(kernel, files.initramfs, MEMORY_MIB, lane, clock) for lane, clock in ways]
        theirs = Peer(xen, kernel, files.initramfs, MEMORY_MIB)
        alone = [Alone(kernel, files.initramfs, MEMORY_MIB)] if native else []
        # The first lane is next to the peer, and its real time next to its virtual time.
        everyone: list[Contestant] = [*reversed(ours), theirs, *alone]
        measured = contest.measure(everyone, pairs, workloads, timeout, say)
    for text in measured.warnings:
        say(f"warning: {text}")
    results = Results(measured, ours, theirs.label, alone[0].label if alone else None)
    console = report.console()
    console.print(f"Xen 4.17 under {qemu}; Debian {files.version}, {kernel.name}", highlight=False)
    results.show()
    if json_path is not None:
        content = {
            "kind": "peer", "kernel": f"{kernel.name} {files.version}", "xen": xen.name, "qemu": qemu,
            "host": report.host(), "virtual / real": dict(results.virtual_to_real()),
            "rows": {
                one.label: {other: measured.rows(one.label, other) for other in results.others()}
                for one in ours
            },
            "spans": measured.spans(), "others": measured.others, "quotable": not measured.busy(),
            "warnings": measured.warnings,
        }  # fmt: skip
        report.write_json(json_path, content)
    page.publish(page_path, measured.busy(), results.tables())
