# SPDX-License-Identifier: GPL-2.0-only
"""What a failed test tells of its guests: how each ended or what it is doing, the end of its console, and the
command that runs the test again.

It is said in sections of pytest's report, one for each guest, so that it comes home from the workers of
pytest-xdist too.
"""

import os
import shlex
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

import pytest

from pyhv.testing.collection import VERDICT
from pyhv.testing.fixtures import INJECTOR, USED
from pyhv.testing.options import SEED, TIMEOUT
from pyhv.testing.recording import RECORDINGS

if TYPE_CHECKING:
    from pyhv.api.guest import Guest
    from pyhv.testing.under_test import MachineUnderTest

TAIL: Final = 40
"""Lines of a console's end."""
_PASSED_ON: Final = {SEED: "--pyhv-seed", TIMEOUT: "--pyhv-timeout", VERDICT: "--pyhv-verdict"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the sections to the report of a failure."""
    report = yield
    machines = [machine for machine in item.stash.get(USED, []) if machine.had]
    if report.failed and machines:
        for machine in machines:
            for guest in machine.had:
                report.sections.append((f"pyhv: {guest.name}", describe(machine, guest)))
        injector = item.stash.get(INJECTOR, None)
        if injector is not None and injector.faults:
            report.sections.append(("pyhv: injected", "\n".join(str(fault) for fault in injector.faults)))
        for machine in machines:
            item.config.stash[RECORDINGS].end(machine, failed=True)
        has_faults = injector is not None and bool(injector.faults)
        report.sections.append(("pyhv: the same run again", again(item, machines, has_faults=has_faults)))
    return report


def describe(machine: "MachineUnderTest", guest: "Guest") -> str:
    """One guest: what is known of it."""
    from pyhv.cli.messages import printable

    kind = "virtual" if machine.virtual_time else "real"
    lines = [
        f"{guest.name} (domain {guest.domid}, {guest.state}) on a machine in {kind} time, "
        f"{machine.time:.6f} s old, seed {machine.seed}",
        "",
        (guest.crash_report([]) or guest.activity()).rstrip(),
        "",
    ]
    tail = guest.console.tail(TAIL)
    if tail:
        lines += ["The end of its console:", *(f"  {printable(line)}" for line in tail)]
    else:
        lines.append("It has printed nothing.")
    return "\n".join(lines)


def again(item: pytest.Item, machines: "list[MachineUnderTest]", *, has_faults: bool) -> str:
    """How to run the test again, so that its guests do the same."""
    path = os.path.relpath(item.path, item.config.invocation_params.dir)
    _, separator, names = str(item.nodeid).partition("::")
    command = ["pytest", f"{path}{separator}{names}"]
    for name, option in _PASSED_ON.items():
        value = item.config.getoption(name)
        if value is not None:
            command.append(f"{option}={value}")
    files = [
        os.path.relpath(machine.recording.path, item.config.invocation_params.dir)
        for machine in machines
        if machine.recording is not None and machine.recording.path is not None
    ]
    virtual = all(machine.virtual_time for machine in machines)
    if files and virtual:
        command.append(f"--pyhv-replay={files[0]}")
    lines = [shlex.join(command)]
    if files and not has_faults:
        lines.append(f"{shlex.join(['pyhv', 'replay', files[0]])}  (the guests alone)")
    if not virtual:
        lines.append("(in real time: much like it, but not the same to the last instruction)")
    return "\n".join(lines)
