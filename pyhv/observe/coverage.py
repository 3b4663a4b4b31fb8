# SPDX-License-Identifier: GPL-2.0-only
"""Which hypercalls were made, with which of their commands, and how they were answered: hypercall coverage.

What there is to cover is what `docs/hypercalls.md` is written from: each hypercall, each command of one that
has commands, and for each the errors that its docstring names. An `Answers` counts; while it is switched on,
it stands in the table of hypercalls between all guests that are built from then on and their handlers.
Switched off, it is not there.

Not counted are iret, which has no result, and what the `status` of a grant operation says (GNTST).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall
from pyhv.errors import GuestCrash, XenError
from pyhv.frozen import frozen
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.registry import COMMANDS, HYPERCALLS
from pyhv.hypercalls.signature import Form
from pyhv.hypercalls.table import Entry, Status, SubOperation

OK: Final = ""
CRASH: Final = "crash"
"""What an answer is when it is no errno: success, and the end of the guest."""
_ERRORS: Final = re.compile(r"\bE[A-Z0-9]{2,}\b")
_OTHERS: Final = "others"
"""A command that is none."""
Handler = Callable[..., Any]


class Point(NamedTuple):
    """One thing to cover: a hypercall's answer. `command` is empty where it has none."""

    hypercall: str
    command: str
    answer: str
    """`OK`, an errno's name, or `CRASH`."""


class Answers:
    """Counts the answers to hypercalls."""

    def __init__(self) -> None:
        self.counts: Counter[Point] = Counter()
        self._undo: list[Callable[[], None]] = []

    def switch_on(self) -> None:
        """Count for guests that are built from now on."""
        assert not self._undo, "it is switched on already"
        for number, entry in enumerate(HYPERCALLS):
            if entry is not None and entry.number is not Hypercall.IRET:
                wide, narrow = self._form(entry, entry.wide), self._form(entry, entry.narrow)
                HYPERCALLS[number] = replace(entry, wide=wide, narrow=narrow)
                self._undo.append(partial(HYPERCALLS.__setitem__, number, entry))
        listed = COMMANDS[Hypercall.MMUEXT_OP]
        for command, handler in list(listed.items()):
            listed[command] = self._counted_as(listed.operations[command], handler)
            self._undo.append(partial(listed.__setitem__, command, handler))

    def switch_off(self) -> None:
        """Guests that are built from now on are not looked at."""
        while self._undo:
            self._undo.pop()()

    def add(self, counts: Iterable[tuple[str, str, str, int]]) -> None:
        """Count what another process has counted, as `plain` says it."""
        for hypercall, command, answer, count in counts:
            self.counts[Point(hypercall, command, answer)] += count

    def plain(self) -> list[tuple[str, str, str, int]]:
        """All counts as plain data."""
        return [(*point, count) for point, count in sorted(self.counts.items())]

    def _form(self, entry: Entry, form: Form) -> Form:
        commands = COMMANDS.get(entry.number)
        by_command = commands is not None and entry.number is not Hypercall.MMUEXT_OP
        names = {int(one): one.name.lower() for one in commands.numbers} if commands and by_command else {}

        def what(values: tuple[int, ...]) -> tuple[str, str]:
            return entry.name, names.get(values[0], _OTHERS) if by_command else ""

        return Form(form.width, self._counted(form.handler, what), form.arguments)

    def _counted_as(self, operation: SubOperation, handler: Handler) -> Handler:
        what = Hypercall.MMUEXT_OP.name.lower(), operation.number.name.lower()
        return self._counted(handler, lambda _values: what)

    def _counted(self, handler: Handler, what: Callable[[tuple[int, ...]], tuple[str, str]]) -> Handler:
        counts = self.counts

        def counted(call: Call, *values: int) -> Any:
            try:
                result = handler(call, *values)
            except XenError as error:
                counts[Point(*what(values), Errno(error.errno).name)] += 1
                raise
            except GuestCrash:
                counts[Point(*what(values), CRASH)] += 1
                raise
            counts[Point(*what(values), OK)] += 1
            return result

        return counted


@frozen
class Line:
    """A hypercall, or a command of one: how often it was made, and which answers were seen."""

    hypercall: str
    command: str
    made: int
    seen: tuple[str, ...]
    """Errors that were answered, whether they are documented or not."""
    unseen: tuple[str, ...]
    """Documented errors that never were."""
    refused: bool
    """It is not for a domU: there is nothing to exercise but its error."""


def lines(counts: "Counter[Point]") -> Iterator[Line]:
    """What there is to cover, in the order of the table, and how much of it was."""
    for entry in HYPERCALLS:
        if entry is None or entry.number is Hypercall.IRET:
            continue
        mine = {point: count for point, count in counts.items() if point.hypercall == entry.name}
        commands = COMMANDS.get(entry.number)
        whole = {point: count for point, count in mine.items() if not point.command} or mine
        yield _line(whole, entry.name, "", entry, documented_only=commands is not None)
        for operation in sorted(commands.operations.values(), key=lambda one: one.number) if commands else ():
            name = operation.number.name.lower()
            yield _line(
                {point: count for point, count in mine.items() if point.command == name},
                entry.name,
                name,
                operation,
            )


def _line(
    counts: dict[Point, int],
    hypercall: str,
    command: str,
    about: Entry | SubOperation,
    *,
    documented_only: bool = False,
) -> Line:
    documented = {name for name in _ERRORS.findall(about.text) if name in Errno.__members__}
    seen = {point.answer for point in counts} - {OK}
    if documented_only:  # the others are its commands'
        seen &= documented
    unseen = documented - seen
    refused = about.status is Status.REFUSED
    return Line(hypercall, command, sum(counts.values()), tuple(sorted(seen)), tuple(sorted(unseen)), refused)


def summary(counts: "Counter[Point]") -> str:
    """One line: how much was exercised."""
    found = list(lines(counts))
    calls = [line for line in found if not line.command]
    commands = [line for line in found if line.command]
    errors, of = sum(len(line.seen) for line in found), sum(len(line.seen + line.unseen) for line in found)
    return (
        f"{sum(line.made > 0 for line in calls)} of {len(calls)} hypercalls, "
        f"{sum(line.made > 0 for line in commands)} of {len(commands)} commands, {errors} of {of} errors"
    )


def table(counts: "Counter[Point]") -> list[str]:
    """All of it as a table in Markdown."""
    rows = [
        "| hypercall | command | made | errors seen | errors not seen |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for line in lines(counts):
        cells = [
            line.hypercall, line.command, str(line.made) if line.made else "-", " ".join(line.seen),
            " ".join(line.unseen),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows
