# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv boot --coverage`: what the guests of a run have executed, and which hypercalls they made.

What cannot be had - a directory, coverage.py, a listing that fits - is noticed before anything runs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyhv
from pyhv.cli.messages import say
from pyhv.errors import EnvironmentProblem
from pyhv.guests.catalogue import BUILTIN, HOSTILE, source_of
from pyhv.guests.listing import SUFFIX, read_listing
from pyhv.images.source import Source, symbol_file
from pyhv.observe.blocks import Blocks
from pyhv.observe.coverage import Answers, summary, table
from pyhv.observe.places import SourceLine, lines_of_dwarf, lines_of_listing
from pyhv.observe.report import GuestReport, Text, hypercall_text, merged

LCOV, JSON, TEXT = ".info", ".json", ".txt"
_MISSING: Final = "needs coverage.py (pip install 'pyhv[coverage]'); .json and .txt do not"


class Covering:
    """The coverage of one run, which goes to `target` (its suffix says what it is).

    A context manager: hypercalls are counted for guests that are built within. ImageError,
    EnvironmentProblem.
    """

    def __init__(self, target: Path, sources: Sequence[Source]) -> None:
        self.target = target
        self._sources = list(sources)
        self._lines = {source.origin: _lines(source) for source in sources}
        self._guests: list[tuple[int, str]] = []
        self._blocks, self._answers = Blocks(), Answers()
        self._check()

    def __enter__(self) -> Self:
        self._answers.switch_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.switch_off()

    def watch(self, machine: pyhv.Machine) -> None:
        """The guests that will be built on this machine are the run's."""
        self._blocks.watch(machine.hypervisor)

    def take_in(self, guest: pyhv.Guest) -> None:
        """A guest of the run, in the order of the sources."""
        self._guests.append((guest.domid, guest.name))

    def _check(self) -> None:
        """Whether the report can be written, as far as that can be known."""
        as_pages = self._as_pages
        if as_pages or self.target.suffix == LCOV:
            try:
                import pyhv.observe.rendered  # noqa: F401 - whether it can be
            except ImportError as cause:
                raise EnvironmentProblem(f"--coverage {self.target} {_MISSING}") from cause
        try:
            if as_pages:
                self.target.mkdir(exist_ok=True)
            else:
                self.target.write_bytes(b"")
        except (OSError, ValueError) as cause:
            raise _cannot_write(self.target, cause) from cause

    @property
    def _as_pages(self) -> bool:
        return self.target.suffix not in (LCOV, JSON, TEXT) or self.target.is_dir()

    def write(self) -> None:
        """Write the report, and say the gist of it. EnvironmentProblem."""
        reports = [
            GuestReport(name, source.image, self._blocks.of(domid), self._lines[source.origin])
            for (domid, name), source in zip(self._guests, self._sources, strict=True)
        ]
        if self._as_pages or self.target.suffix == LCOV:
            self._render(reports)
        elif self.target.suffix == JSON:
            self._write(json.dumps(self._plain(reports)))
        else:
            rows = [row for report in reports for row in [*report.table(), ""]]
            self._write("\n".join([*rows, *table(self._answers.counts)]))
        for report in reports:
            say(f"coverage of {report.table()[0]}")
        say(f"coverage of hypercalls: {summary(self._answers.counts)}")
        say(f"coverage is in {self.target / 'index.html' if self._as_pages else self.target}")

    def _plain(self, reports: list[GuestReport]) -> dict[str, object]:
        return {"guests": [report.plain() for report in reports], "hypercalls": self._answers.plain()}

    def _render(self, reports: list[GuestReport]) -> None:
        from pyhv.observe.rendered import write_html, write_lcov

        folder = (self.target if self._as_pages else self.target.with_suffix("")).absolute()
        texts = merged(
            [text for report in reports for text in report.texts(folder)]
            + [hypercall_text(self._answers.counts, folder)]
        )
        if self._as_pages:
            write_html(texts, self.target)
        else:
            self._write_tables(texts, folder)
            write_lcov(texts, self.target)

    @staticmethod
    def _write_tables(texts: Sequence[Text], folder: Path) -> None:
        """What lcov's readers want to find: the tables that stand for sources, in a directory of theirs."""
        try:
            folder.mkdir(exist_ok=True)
            for text in texts:
                if text.text is not None:
                    text.path.write_text(text.text, encoding="utf-8")
        except OSError as cause:
            raise _cannot_write(folder, cause) from cause

    def _write(self, text: str) -> None:
        try:
            self.target.write_text(f"{text}\n", encoding="utf-8")
        except OSError as cause:
            raise _cannot_write(self.target, cause) from cause


def _cannot_write(path: Path, cause: OSError | ValueError) -> EnvironmentProblem:
    reason = cause.strerror if isinstance(cause, OSError) else str(cause)
    return EnvironmentProblem(f"{path}: cannot be written for the coverage ({reason})")


def _lines(source: Source) -> list[SourceLine]:
    """The lines of an image's sources: of a guest of pyhv's, of a listing beside a file, or of its DWARF."""
    word = source.origin.image
    if word in BUILTIN or word in HOSTILE:
        from pyhv.guests.build import build_listed

        return lines_of_listing(build_listed(source_of(word))[1], source.image, word)
    listing = Path(word).with_suffix(SUFFIX)
    if "/" in word and listing.exists():
        return lines_of_listing(read_listing(listing), source.image, str(listing))
    file = symbol_file(source.origin)
    return [] if file is None else lines_of_dwarf(file)
