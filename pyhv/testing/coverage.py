# SPDX-License-Identifier: GPL-2.0-only
"""`--pyhv-coverage`: which hypercalls, commands and errors the guests of this session have exercised.

A line at the end of the session; with `--pyhv-coverage=FILE` the whole table, in Markdown. The workers of
pytest-xdist send what they have counted when they are done.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pyhv.observe.coverage import Answers

COVERAGE: Final = "pyhv_coverage"
_HERE: Final = "-"
_ANSWERS: Final["pytest.StashKey[Answers]"] = pytest.StashKey()


def add(parser: pytest.Parser) -> None:
    """Have pytest know the option."""
    parser.getgroup("pyhv").addoption(
        "--pyhv-coverage", dest=COVERAGE, nargs="?", const=_HERE, metavar="FILE", help="tell which "
        "hypercalls, commands and errors were exercised; in FILE, the whole table (ini: pyhv_coverage)",
    )  # fmt: skip
    parser.addini(
        COVERAGE, "file for the table of exercised hypercalls; -: only a line at the end", default=""
    )


def _wanted(config: pytest.Config) -> str:
    given: Any = config.getoption(COVERAGE)
    return str(config.getini(COVERAGE) if given is None else given)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Pytest's hook: begin to count."""
    if _wanted(session.config):
        from pyhv.observe.coverage import Answers

        session.config.stash[_ANSWERS] = answers = Answers()
        answers.switch_on()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Pytest's hook: a worker sends what it has counted."""
    answers = session.config.stash.get(_ANSWERS, None)
    if answers is None:
        return
    answers.switch_off()
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[COVERAGE] = answers.plain()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The hook of pytest-xdist: a worker is done."""
    answers = node.config.stash.get(_ANSWERS, None)
    if answers is not None:
        answers.add(getattr(node, "workeroutput", {}).get(COVERAGE, ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Pytest's hook: tell it."""
    answers = config.stash.get(_ANSWERS, None)
    if answers is None:
        return
    from pyhv.observe.coverage import summary, table

    terminalreporter.section("pyhv: hypercall coverage")
    terminalreporter.line(summary(answers.counts))
    wanted = _wanted(config)
    if wanted != _HERE:
        path = config.invocation_params.dir / Path(wanted)
        try:
            path.write_text("\n".join(table(answers.counts)) + "\n", encoding="utf-8")
        except OSError as error:
            terminalreporter.line(f"--pyhv-coverage: {path} cannot be written ({error.strerror})", red=True)
        else:
            terminalreporter.line(f"the whole table is in {wanted}")
