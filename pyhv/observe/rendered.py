# SPDX-License-Identifier: GPL-2.0-only
"""Coverage reports in lcov's format and in HTML, by coverage.py: guests' sources as files of a plugin.

coverage.py is optional: `pip install 'pyhv[coverage]'`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from coverage import Coverage
from coverage.exceptions import CoverageException
from coverage.plugin import CodeRegion, CoveragePlugin, FileReporter
from coverage.types import TLineNo

from pyhv.errors import EnvironmentProblem
from pyhv.observe.report import Text


class _Reporter(FileReporter):
    """What coverage.py asks about one text."""

    def __init__(self, text: Text) -> None:
        super().__init__(str(text.path))
        self._text = text

    def source(self) -> str:
        if self._text.text is not None:
            return self._text.text
        try:
            return self._text.path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # sources may be elsewhere than where they were compiled
            return "\n".join("(the source is not there)" for _ in range(max(self._text.lines)))

    def lines(self) -> set[TLineNo]:
        return self._text.lines

    def code_region_kinds(self) -> Iterable[tuple[str, str]]:
        return [("function", "functions")]

    def code_regions(self) -> Iterable[CodeRegion]:
        return [
            CodeRegion("function", name, min(lines), lines) for name, lines in self._text.functions.items()
        ]


class _Plugin(CoveragePlugin):
    def __init__(self, texts: Sequence[Text]) -> None:
        self._texts = {str(text.path): text for text in texts}

    def file_reporter(self, filename: str) -> FileReporter:
        return _Reporter(self._texts[filename])


def write_lcov(texts: Sequence[Text], file: Path) -> None:
    """Write a tracefile, for `genhtml` and whoever else reads such. EnvironmentProblem."""
    with _explained(file):
        _data(texts).lcov_report(outfile=str(file))


def write_html(texts: Sequence[Text], folder: Path) -> None:
    """Write pages into a directory, with index.html as the first of them. EnvironmentProblem."""
    with _explained(folder):
        _data(texts).html_report(directory=str(folder), title="Coverage by guests")


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except (CoverageException, OSError) as cause:
        raise EnvironmentProblem(f"{target}: the coverage report cannot be written ({cause})") from cause


def _data(texts: Sequence[Text]) -> Coverage:
    """What coverage.py would have measured, had it run the guests."""
    plugin = _Plugin(texts)
    coverage = Coverage(
        data_file=None,
        config_file=False,
        plugins=[lambda registry: registry.add_file_tracer(plugin)],
    )
    data = coverage.get_data()
    data.add_lines({str(text.path): text.hit for text in texts})
    name = plugin._coverage_plugin_name  # noqa: SLF001 - it is how data say whose they are
    data.touch_files([str(text.path) for text in texts], name)
    return coverage
