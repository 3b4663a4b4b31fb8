# SPDX-License-Identifier: GPL-2.0-only
"""What pyhv finds on this host, each fact proven anew: the substance of `pyhv doctor`.

The other modules of `cpu/` decide by themselves what they can rely on, and go on without what is missing
where that is possible. This one asks them all and says what it means. It decides nothing.
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

from pyhv.cpu.host import executable_memory_refused
from pyhv.errors import EngineError, GuestCrash
from pyhv.frozen import frozen
from pyhv.lane import ACTIVE, PLAIN

LIBRARIES: Final = (
    "unicorn", "capstone", "keystone-engine", "numpy", "pyelftools", "lz4", "zstandard", "click", "rich",
)  # fmt: skip


class State(Enum):
    """What a finding means for pyhv."""

    FACT = "-"
    GOOD = "yes"
    LESS = "no"
    """Works without it: slower, or with the exceptions that the finding names."""
    BAD = "FAILED"
    """pyhv does not run."""


@frozen
class Finding:
    """One row: what was looked at, what it means, and what was found in words."""

    name: str
    state: State
    text: str


Section = tuple[str, list[Finding]]


def examine() -> Iterator[Section]:
    """Everything, section by section; each is found out when it is asked for."""
    host = list(_host())
    yield "Host", host
    yield "Python", list(_python())
    if any(finding.state is State.BAD for finding in host):
        return
    try:
        import pyhv.cpu.engine
    except (ImportError, OSError, AttributeError) as error:
        text = f"cannot be loaded: {error}. pip install --force-reinstall 'unicorn==2.1.4'"
        yield "Emulator", [Finding("library", State.BAD, text)]
        return
    assert pyhv.cpu.engine
    yield "Emulator", list(_emulator())
    proofs = list(_proofs())
    yield "Proven at each start", proofs
    if not any(finding.state is State.BAD for finding in proofs):
        yield "Used where it can be", list(_extras())
        yield "Changes to the emulator", list(_tuning())


def _host() -> Iterator[Finding]:
    yield Finding("system", State.FACT, f"{platform.system()} {platform.release()} on {platform.machine()}")
    yield Finding("processors", State.FACT, str(len(os.sched_getaffinity(0))))
    yield _executable_memory()


def _executable_memory() -> Finding:
    refused = executable_memory_refused()
    if refused:
        return Finding("executable memory", State.BAD, refused)
    return Finding("executable memory", State.GOOD, "memory may be writable and executable")


def _python() -> Iterator[Finding]:
    text = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    yield Finding("interpreter", State.FACT, text)
    for name in LIBRARIES:
        try:
            yield Finding(name, State.FACT, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, State.LESS, "not installed as a package")
    yield _lane()


def _lane() -> Finding:
    """Whether exits are handled by compiled code (docs/native.md)."""
    if ACTIVE.refused:
        return Finding("native lane", State.BAD, ACTIVE.refused)
    if ACTIVE.name == PLAIN:
        return Finding("native lane", State.LESS, f"exits are handled by interpreted Python; {ACTIVE.why}")
    return Finding("native lane", State.GOOD, f"exits are handled by compiled code: the {ACTIVE.name} lane")


def _emulator() -> Iterator[Finding]:
    from pyhv.cpu import binding
    from pyhv.cpu.slots import library
    from pyhv.cpu.tuning import layout

    yield Finding("library", State.FACT, binding.LIBRARY_PATH)
    build_id = library().build_id or "none"
    known = build_id == layout.BUILD_ID
    text = "the build that pyhv knows" if known else f"pyhv knows {layout.BUILD_ID}"
    yield Finding("build-id", State.GOOD if known else State.LESS, f"{build_id}: {text}")


def _proofs() -> Iterator[Finding]:
    """What pyhv does not run without."""
    from pyhv.cpu.probe import REMEDY
    from pyhv.cpu.selftest import CHECKS
    from pyhv.cpu.trial import BrokenPromise, Trial

    try:
        trial = Trial()
    except EngineError as error:
        yield Finding("state of the processor", State.BAD, str(error))
        return
    yield Finding("state of the processor", State.GOOD, "found, and each register where it is expected")
    with trial:
        for name, check in CHECKS.items():
            try:
                check(trial)
            except BrokenPromise as broken:
                yield Finding(name, State.BAD, f"the emulator breaks a rule: {broken.promise}. {REMEDY}")
                return
            except GuestCrash as crash:
                yield Finding(name, State.BAD, f"the emulator gave up: {crash.why}. {REMEDY}")
                return
            yield Finding(name, State.GOOD, _first_sentence(check))


def _first_sentence(check: Callable[..., object]) -> str:
    words = (check.__doc__ or "").strip().split("\n\n")[0].split()
    if not words[0].isupper():
        words[0] = words[0].lower()
    return " ".join(words).rstrip(".")


def _extras() -> Iterator[Finding]:
    """What pyhv has a second way for."""
    from pyhv.cpu.clockwork import BlockBudget, make_budget
    from pyhv.cpu.engine import can_stop_at_any_time
    from pyhv.cpu.guard import guard
    from pyhv.cpu.tsc import host_tsc

    native = isinstance(make_budget(), BlockBudget)
    tsc = host_tsc()
    for name, good, yes, no in (
        ("stops at any moment", can_stop_at_any_time(), "real time costs nothing",
         "real time counts executed code, and is slower"),
        ("block counter", native, "virtual time counts in native code",
         "virtual time counts in Python, and is slow"),
        ("guard against abort", guard() is not None, "code that the emulator cannot translate is #UD",
         "a guest that executes LOCK BTS with a register ends this process"),
        ("host's TSC", tsc is not None, f"guests read it: {tsc.rate.hz / 1e6:.0f} MHz" if tsc else "",
         "RDTSC is an exit in real time, as in virtual time"),
    ):  # fmt: skip
        yield Finding(name, State.GOOD if good else State.LESS, yes if good else no)


def _tuning() -> Iterator[Finding]:
    from pyhv.cpu.tuning.gate import tuning

    state = State.GOOD if tuning().active else State.LESS
    yield Finding("active", state, tuning().why_not or "they fit this library, and each is proven")
    for patch in tuning().patches:
        yield Finding(patch.name, state, patch.promise)
