# SPDX-License-Identifier: GPL-2.0-only
"""`--pyhv-record` and `--pyhv-replay`: the runs of failed tests as files, and a test's very run again.

    --pyhv-record=failures   each test's machine is recorded; what is recorded of one that passes goes again
    --pyhv-record=all        all of it stays
    --pyhv-replay FILE       the test of that recording alone, with its seed; it fails where anything comes in
                             at another moment than it did then, or is something else

A recording has what came in from outside, each with its moment. `pyhv replay` has it again without the test,
unless the test has let things go wrong (`injection.py`): that only the test can do again. In real time it is
the other way round: what a test does comes at other moments each time, so that only `pyhv replay` has the run
again; and a booted guest is not recorded there. The files are in the folder `pyhv-recordings`, or where the
ini's `pyhv_record_dir` says.
"""

import hashlib
import re
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from pyhv.outside import Command
    from pyhv.replay.entries import RecordedRun, Taken
    from pyhv.snapshot.snapshot import Snapshot
    from pyhv.testing.under_test import MachineUnderTest

RECORD, DIRECTORY, REPLAY = "pyhv_record", "pyhv_record_dir", "pyhv_replay"
FAILURES, ALL = "failures", "all"
NOTE: Final = "pytest"
"""Topic of a note: the test's node id."""
_LONGEST: Final = 100
"""Characters of a file's name that come from the test's."""


def add(parser: pytest.Parser) -> None:
    """Have pytest know the options."""
    group = parser.getgroup("pyhv")
    group.addoption(
        "--pyhv-record", dest=RECORD, nargs="?", const=FAILURES, choices=(FAILURES, ALL), help="keep "
        "recordings of the runs of tests that fail, or of all (ini: pyhv_record)",
    )  # fmt: skip
    group.addoption(
        "--pyhv-replay", dest=REPLAY, metavar="FILE", help="run the test of that recording again, and fail "
        "where it is not the same run",
    )  # fmt: skip
    parser.addini(RECORD, "keep recordings of tests: failures or all", default="")
    parser.addini(DIRECTORY, "where recordings are kept", default="pyhv-recordings")


class Recordings:
    """A session's recordings."""

    def __init__(self, config: pytest.Config) -> None:
        self.mode = str(config.getoption(RECORD) or config.getini(RECORD))
        if self.mode not in ("", FAILURES, ALL):
            raise pytest.UsageError(f"pyhv_record is {self.mode!r}: failures or all is wanted")
        self._folder = config.rootpath / str(config.getini(DIRECTORY))
        self._bases: dict[int, tuple[Snapshot, Snapshot]] = {}
        """Snapshots that were saved, by those that were not."""
        self._kept = False
        given = config.getoption(REPLAY)
        self.replayed = None if given is None else _Replayed(config.invocation_params.dir / given)

    def file_for(self, item: pytest.Item) -> Path | None:
        """Where a test's machine is to be recorded; None: it is not."""
        if self.replayed is not None or not self.mode:
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise pytest.UsageError(f"{self._folder} cannot be made ({error.strerror})") from None
        return self._folder / file_name(str(item.nodeid))

    def begin(self, item: pytest.Item, machine: "MachineUnderTest", base: "Snapshot | None" = None) -> None:
        """A test's machine is there; `base`: it has booted guests, and is at that moment. PyhvError."""
        if self.replayed is not None:
            self.replayed.begin(machine)
        path = self.file_for(item)
        if path is not None and machine.virtual_time:
            machine.record(path, base=None if base is None else self._saved(base))
        if machine.recording is not None:
            machine.recording.note(NOTE, str(item.nodeid))

    def end(self, machine: "MachineUnderTest", *, failed: bool) -> None:
        """The test is over, or has failed and its machine is to be looked at."""
        if self.replayed is not None:
            self.replayed.end(machine, failed=failed)
        recording = machine.recording
        if recording is None or recording.path is None:
            return
        was_active = recording.active
        recording.close("the test failed" if failed else "the test passed")
        if failed or self.mode == ALL:
            self._kept = True
        elif was_active:  # else it has failed before
            recording.path.unlink(missing_ok=True)

    def close(self) -> None:
        """The session is over: snapshots that no recording begins with go."""
        if not self._kept:
            for _, saved in self._bases.values():
                Path(saved.origin).unlink(missing_ok=True)

    def _saved(self, base: "Snapshot") -> "Snapshot":
        found = self._bases.get(id(base))
        if found is None:
            path = self._folder / f"booted-{uuid4().hex[:8]}.snap"
            base.save(path)
            found = self._bases[id(base)] = base, replace(base, origin=str(path))
        return found[1]


RECORDINGS: Final = pytest.StashKey[Recordings]()


def file_name(nodeid: str) -> str:
    """The file of a test's recording."""
    readable = re.sub(r"[^\w.-]+", "-", nodeid)[-_LONGEST:].strip("-")
    return f"{readable}-{hashlib.blake2b(nodeid.encode(), digest_size=3).hexdigest()}.rec"


class _Replayed:
    """The recording that a test is compared with."""

    def __init__(self, path: Path) -> None:
        from pyhv.errors import ReplayError
        from pyhv.replay import log
        from pyhv.replay.entries import understood

        try:
            self._run: RecordedRun = understood(log.read(path))
        except ReplayError as error:
            raise pytest.UsageError(f"--pyhv-replay: {path}: {error}") from None
        tests = [data for topic, data in self._run.notes if topic == NOTE]
        if not (len(tests) == 1 and isinstance(tests[0], list) and isinstance(tests[0][0], str)):
            raise pytest.UsageError(f"--pyhv-replay: {path} is no recording of a test; try pyhv replay")
        self.nodeid = tests[0][0]
        self.seed = self._run.head.config.seed_number()
        self._comparing: _Comparing | None = None
        self.told = "the test has not been run"

    def begin(self, machine: "MachineUnderTest") -> None:
        if machine.virtual_time:
            self._comparing = _Comparing(machine, self._run)
        else:
            self.told = "in real time a test does not come again to the moment: try pyhv replay"

    def end(self, machine: "MachineUnderTest", *, failed: bool) -> None:
        comparing, self._comparing = self._comparing, None
        if comparing is not None:
            machine.hypervisor.door.listeners.remove(comparing)
            self.told = comparing.told(failed=failed)


class _Comparing:
    """Listens at a machine's door, and compares what comes in with what has come in then."""

    def __init__(self, machine: "MachineUnderTest", run: "RecordedRun") -> None:
        from pyhv.errors import Diverged
        from pyhv.replay.commands import Scribe
        from pyhv.replay.entries import Taken

        self._machine = machine.hypervisor
        self._scribe = Scribe()
        self._left = deque(entry for entry in run.entries if isinstance(entry, Taken))
        self.same = 0
        self.differs = ""
        here, start = self._machine.position, run.start
        self._turns_before = here.turns - start.turns  # of a machine that was put back: those of other tests
        if (here.ticks, here.exits) != (start.ticks, start.exits):
            raise Diverged(f"the test begins at {here}, and in the recording at {start}")
        self._machine.door.listeners.append(self)

    def arrives(self, command: "Command") -> None:
        """`DoorListener.arrives`."""
        from pyhv.replay.entries import Moment

        machine = self._machine
        here = machine.position
        here = here._replace(turns=here.turns - self._turns_before)
        self._moment = Moment(here, machine.door.settled, machine.ending)
        self._said: Any = self._scribe.say(command)

    def taken(self, command: "Command", answer: object) -> None:
        """`DoorListener.taken`. Diverged."""
        import msgpack

        from pyhv.errors import Diverged
        from pyhv.replay.commands import answered
        from pyhv.replay.entries import Taken
        from pyhv.replay.log import unpack

        said = answered(command.verb, answer)
        if command.verb == "input":
            if not said:
                return
            self._said[1] = command.arguments["data"][:said]
        plain = unpack(msgpack.packb(self._said))
        made = Taken(self._moment, command.verb, plain, said)
        then = self._left.popleft() if self._left else None
        if made == then:
            self.same += 1
        elif not self.differs:
            self.differs = f"{_describe(made)}, and in the recording {_describe(then)}"
            raise Diverged(f"the run differs: {self.differs}")

    def at_rest(self) -> None:
        """`DoorListener.at_rest`."""

    def told(self, *, failed: bool) -> str:
        """How it went."""
        if self.differs:
            return f"not the same run: {self.differs}"
        if self._left and not failed:
            return f"not the same run: {_describe(self._left[0])} has not come in"
        return f"the same run: {self.same} inputs, each at its moment"


def _describe(entry: "Taken | None") -> str:
    if entry is None:
        return "nothing more comes in"
    what = "" if entry.verb == "create" else f" {entry.arguments!r}"[:80]
    return f"{entry.verb}{what} at {entry.moment.position}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Pytest's hook: a recording is of one test."""
    replayed = config.stash[RECORDINGS].replayed
    if replayed is None:
        return
    chosen = [item for item in items if str(item.nodeid) == replayed.nodeid]
    if not chosen:
        raise pytest.UsageError(
            f"--pyhv-replay: the recording is of {replayed.nodeid}, which was not collected"
        )
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Pytest's hook."""
    session.config.stash[RECORDINGS].close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Pytest's hook: whether it was the same run."""
    replayed = config.stash[RECORDINGS].replayed
    if replayed is not None:
        terminalreporter.section("pyhv: replay")
        terminalreporter.line(replayed.told)
