# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv doctor`: what pyhv finds on this host, and whether it can run. The words are `pyhv.cpu.examine`'s."""

from typing import TYPE_CHECKING, Final

import click

from pyhv.cli.messages import say, verbose_option
from pyhv.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from pyhv.cpu.examine import Finding

PLAIN_WIDTH: Final = 160
"""Columns when the output is not a terminal."""
_STYLES: Final = {"yes": "green", "no": "yellow", "FAILED": "bold red", "-": ""}

EPILOG: Final = """\b
Examples:
  pyhv doctor
  PYHV_ENGINE_TUNING=0 pyhv doctor    leave the emulator as it is
  PYHV_LANE=plain pyhv doctor         leave compiled code alone (also: native, checked)

\b
In the middle column:
  yes     it is so, proven just now
  no      it is not, and pyhv does without it: the text says what that means
  FAILED  pyhv cannot run: the text says what to do

Exit code 0: pyhv can run; 4: it cannot.
"""


@click.command(epilog=EPILOG)
@verbose_option
def doctor() -> None:
    """Examine host, Python and emulator: what is there, what is proven, what is active, and why not."""
    from rich.console import Console

    from pyhv.cpu.examine import State, examine

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    failed: list[Finding] = []
    for title, findings in examine():
        with console.capture() as capture:
            _print(console, title, findings)
        for line in capture.get().splitlines():
            click.echo(line.rstrip())
        failed += [finding for finding in findings if finding.state is State.BAD]
    for finding in failed:
        say(f"{finding.name}: {finding.text}")
    click.get_current_context().exit(ExitCode.ENVIRONMENT if failed else ExitCode.OK)


def _print(console: "Console", title: str, findings: "list[Finding]") -> None:
    """A title, and a row for each finding."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=24, style="cyan", no_wrap=True)
    grid.add_column(min_width=6)
    grid.add_column(overflow="fold")
    for finding in findings:
        state = finding.state.value
        grid.add_row(Text(finding.name), Text(state, style=_STYLES[state]), Text(finding.text))
    console.print(Text(title, style="bold"))
    console.print(Padding(grid, (0, 0, 1, 2)))
