# SPDX-License-Identifier: GPL-2.0-only
"""What a coverage report is about: texts with lines, of which some could be executed and some were.

A text is a file of a guest's sources; or, where there is none, a table of its symbols, a line for each, or of
Xen's hypercalls: so all of it has the same form, and one library renders it (`rendered.py`).
"""

import itertools
import textwrap
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pyhv.frozen import frozen
from pyhv.loader.image import KernelImage, Symbol
from pyhv.observe.blocks import AddressSet, Reached
from pyhv.observe.coverage import Line, Point
from pyhv.observe.coverage import lines as hypercall_lines
from pyhv.observe.places import SourceLine, routines

HYPERCALLS: Final = "hypercalls"
SYMBOLS: Final = ".symbols"


@dataclass
class Text:
    """One text of a report. `text` is what stands in it; None: what the file says."""

    path: Path
    text: str | None = None
    lines: set[int] = field(default_factory=set)
    """Lines that could be executed."""
    hit: set[int] = field(default_factory=set)
    """Lines that were."""
    functions: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """By symbol: its lines."""

    def take_in(self, other: "Text") -> None:
        """What another guest did with the same text is added."""
        self.lines |= other.lines
        self.hit |= other.hit
        for name, lines in other.functions.items():
            self.functions[name] |= lines


@frozen
class Routine:
    """A symbol, how many of its bytes were executed, and how many blocks begin in it."""

    symbol: Symbol
    executed: int
    blocks: int


class GuestReport:
    """What one guest has executed, by the places of its image. `lines`: those of its sources, if known."""

    def __init__(self, name: str, image: KernelImage, reached: Reached, lines: Sequence[SourceLine]) -> None:
        self.name, self.image, self.reached, self.lines = name, image, reached, lines
        self.blocks = reached.kernel | reached.user
        self.extent = AddressSet(self.blocks)
        self.routines = self._routines()

    def _routines(self) -> list[Routine]:
        symbols, starts = routines(self.image), sorted(start for start, _ in self.blocks)
        found, at = [], 0
        for symbol in symbols:
            end = symbol.va + symbol.size
            begun = 0
            while at < len(starts) and starts[at] < end:
                begun += starts[at] >= symbol.va
                at += 1
            found.append(Routine(symbol, self.extent.within(symbol.va, end), begun))
        return found

    @property
    def elsewhere(self) -> int:
        """Bytes that were executed outside of the image's symbols: processes, modules, generated code."""
        return sum(end - start for start, end in self.extent.ranges) - sum(
            routine.executed for routine in self.routines
        )

    def texts(self, folder: Path) -> list[Text]:
        """Its sources; without them the table of its symbols, as a file that would be in `folder`."""
        return self._sources() if self.lines else [self._symbol_table(folder)]

    def _sources(self) -> list[Text]:
        found: dict[Path, Text] = {}
        starts = [routine.symbol.va for routine in self.routines]
        for line in self.lines:
            text = found.setdefault(line.path, Text(line.path))
            text.lines.add(line.number)
            if self.extent.covers(line.address):
                text.hit.add(line.number)
            number = bisect_right(starts, line.address)
            symbol = self.routines[number - 1].symbol if number else None
            if symbol is not None and line.address < symbol.va + symbol.size:
                text.functions[symbol.name].add(line.number)
        return list(found.values())

    def _symbol_table(self, folder: Path) -> Text:
        text, rows = Text(folder / f"{Path(self.image.name).name}{SYMBOLS}"), []
        for number, routine in enumerate(self.routines, 1):
            symbol = routine.symbol
            rows.append(f"{symbol.va:016x} {symbol.size:8}  {symbol.name}")
            text.lines.add(number)
            text.functions[symbol.name].add(number)
            if routine.executed:
                text.hit.add(number)
        text.text = "\n".join(rows) + "\n"
        return text

    def table(self) -> list[str]:
        """Its symbols as a text for people: what was executed, then the names of the rest."""
        total = sum(routine.symbol.size for routine in self.routines)
        done = sum(routine.executed for routine in self.routines)
        met = [routine for routine in self.routines if routine.executed]
        places = "symbols" if self.image.symbols else "pages"
        rows = [
            f"{self.name}: {len(met)} of {len(self.routines)} {places}, {done} of {total} bytes,"
            f" {len(self.blocks)} blocks ({len(self.reached.user)} in user mode),"
            f" {self.elsewhere} bytes elsewhere{', and more than is kept' if self.reached.full else ''}",
            f"  {'address':>16} {'size':>8} {'executed':>8}    {'blocks':>6}  symbol",
        ]
        for one in met:
            va, size, name = one.symbol
            share = 100 * one.executed // size
            rows.append(f"  {va:016x} {size:8} {one.executed:8} {share:3}% {one.blocks:6}  {name}")
        missed = [one.symbol.name for one in self.routines if not one.executed]
        if missed and self.image.symbols:
            rows += textwrap.wrap(
                " ".join(missed), 118, initial_indent="  not executed: ", subsequent_indent="    ",
                break_long_words=False,
            )  # fmt: skip
        return rows

    def plain(self) -> dict[str, Any]:
        """All of it as plain data, for JSON: blocks and symbols as [address, ...]."""
        return {
            "name": self.name,
            "image": self.image.name,
            "kernel": sorted(self.reached.kernel),
            "user": sorted(self.reached.user),
            "symbols": [
                {
                    "name": one.symbol.name, "address": one.symbol.va, "size": one.symbol.size,
                    "executed": one.executed, "blocks": one.blocks,
                }
                for one in self.routines
            ],
        }  # fmt: skip


def hypercall_text(counts: "Counter[Point]", folder: Path) -> Text:
    """The hypercalls and commands that a guest may make, a line for each, and which were made."""
    text, rows = Text(folder / HYPERCALLS), []
    for number, line in enumerate(hypercall_lines(counts), 1):
        rows.append(_hypercall_row(line))
        if not line.refused or line.made:
            text.lines.add(number)
            text.functions[line.hypercall].add(number)
        if line.made:
            text.hit.add(number)
    text.text = "\n".join(rows) + "\n"
    return text


def _hypercall_row(line: Line) -> str:
    name = f"    {line.command}" if line.command else line.hypercall
    return f"{name:<36}" + " ".join(sorted({*line.seen, *line.unseen})) if line.seen or line.unseen else name


def merged(texts: Iterable[Text]) -> list[Text]:
    """The same texts of several guests are one; others of the same name get a number."""
    found: dict[Path, Text] = {}
    for text in texts:
        names = (text.path.with_name(f"{text.path.name}-{number}") for number in itertools.count(2))
        while (known := found.setdefault(text.path, text)) is not text:
            if known.text == text.text:
                known.take_in(text)
                break
            text.path = next(names)
    return [found[path] for path in sorted(found)]
