# SPDX-License-Identifier: GPL-2.0-only
"""`@pytest.mark.guest(...)` and `@pytest.mark.pyhv_machine(...)`: which guests a test wants, on what machine.

    @pytest.mark.guest("debian", memory="128M", vcpus=2, append="quiet", ready=r"/ # ")
    @pytest.mark.guest("build/mine.img", ready="init: ok")   a file, beside the test or where pytest runs
    @pytest.mark.guest('''.include "xen.inc" ...''')         assembly: more than one line, or a .S file

Several markers of one function (or class, or module) are several guests, in the order in which they are
read. The nearest level that has one decides: a function's marker replaces its module's. This module imports
nothing of pyhv: pytest loads it for everybody.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest

from pyhv.frozen import frozen

GUEST: Final = "guest"
MACHINE: Final = "pyhv_machine"
READY: Final = {"debian": r"/ # "}
"""What images print when they are booted, unless the marker says otherwise."""
_MACHINE_WORDS: Final = ("memory", "scheduler", "virtual_time", "seed", "tuned", "max_domains")

MARKERS: Final = (
    f"{GUEST}(image, *, name, memory, vcpus, append, ready, ramdisk, weight, cap): a guest for the fixtures "
    "guest, guests and booted_guest; image is a name, a path or assembly, ready what its console then shows",
    f"{MACHINE}(*, {', '.join(_MACHINE_WORDS)}): the machine of the fixture pyhv_machine, as of pyhv.Machine",
)


@frozen
class GuestSpec:
    """One guest that is wanted, as `pyhv.Machine.boot` takes it; `beside` is where its paths begin."""

    image: str
    beside: Path
    name: str | None = None
    memory: str | int | None = None
    vcpus: int = 1
    append: str = ""
    ready: str | None = None
    """It is booted when it prints this (a regular expression); None: nothing is waited for."""
    ramdisk: str | Path | None = None
    weight: int = 256
    cap: int = 0

    @property
    def written_out(self) -> bool:
        """Whether `image` is assembly text."""
        return "\n" in self.image

    @property
    def label(self) -> str:
        """How it is called in messages."""
        return "the guest from source" if self.written_out else self.image


@frozen
class Wanted:
    """What a test wants; equal ones can share a booted machine."""

    guests: tuple[GuestSpec, ...]
    machine: tuple[tuple[str, Any], ...]
    """Arguments of `pyhv.Machine` by name."""


_WORDS: Final = frozenset(field.name for field in fields(GuestSpec)) - {"image", "beside"}


def wanted(node: pytest.Item) -> Wanted:
    """What the markers of a test say. Fails the test for a marker that makes no sense."""
    return Wanted(tuple(_guest(mark, node) for mark in _nearest(node)), _machine(node))


def _nearest(node: pytest.Item) -> list[pytest.Mark]:
    """The markers of the nearest level that has any, as one reads them."""
    found = list(node.iter_markers_with_node(GUEST))
    nearest = [mark for level, mark in found if level is found[0][0]]
    if found and isinstance(found[0][0], pytest.Function | pytest.Class):
        nearest.reverse()  # decorators are applied from below
    return nearest


def _guest(mark: pytest.Mark, node: pytest.Item) -> GuestSpec:
    unknown = sorted(set(mark.kwargs) - _WORDS)
    if unknown:
        refuse(f"@pytest.mark.guest has no argument {unknown[0]!r}; there are {', '.join(sorted(_WORDS))}")
    if len(mark.args) != 1 or not isinstance(mark.args[0], str | Path):
        refuse("@pytest.mark.guest needs one image: a name, a path, or assembly source")
    image = str(mark.args[0])
    words: dict[str, Any] = {"ready": READY.get(image), **mark.kwargs}
    if not (words["ready"] is None or isinstance(words["ready"], str)):
        refuse(f"@pytest.mark.guest: ready is {words['ready']!r}; a regular expression is wanted, as text")
    return GuestSpec(image, node.path.parent, **words)


def _machine(node: pytest.Item) -> tuple[tuple[str, Any], ...]:
    mark = node.get_closest_marker(MACHINE)
    if mark is None:
        return ()
    unknown = sorted(set(mark.kwargs) - set(_MACHINE_WORDS))
    if mark.args or unknown:
        what = repr(unknown[0]) if unknown else "without a name"
        refuse(f"@pytest.mark.pyhv_machine has no argument {what}; there are {', '.join(_MACHINE_WORDS)}")
    return tuple(sorted(mark.kwargs.items()))


def refuse(sentence: str) -> None:
    """Fail the test that is being set up: a mistake of its author, told without a traceback."""
    pytest.fail(sentence, pytrace=False)
