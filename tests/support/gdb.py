# SPDX-License-Identifier: GPL-2.0-only
"""The real gdb, in batch mode, against a machine of this process."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import pyhv
from pyhv.api.stub import GdbStub

_SECONDS = 100


def require_gdb() -> str:
    """Its path; skips the test where it is not installed, but never in CI."""
    found = shutil.which("gdb")
    if found is None:
        if "CI" in os.environ:
            pytest.fail("gdb is not installed")
        pytest.skip("gdb is not installed (apt-get install gdb)")
    return found


@dataclass
class Gdb:
    """A gdb that runs a script; `output` is there when it has ended."""

    stub: GdbStub
    commands: Iterable[str]
    symbols: Path | None = None
    output: str = field(init=False, default="")
    failed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        arguments = [require_gdb(), "-nx", "-batch", "-ex", "set pagination off", "-ex", "set confirm off"]
        if self.symbols is not None:
            arguments += ["-ex", f"file {self.symbols}"]
        arguments += ["-ex", f"target remote {self.stub.address}"]
        for command in self.commands:
            arguments += ["-ex", command]
        self._arguments = arguments
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            done = subprocess.run(
                self._arguments,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=_SECONDS,
                env={**os.environ, "LC_ALL": "C", "DEBUGINFOD_URLS": ""},
            )
            self.output, self.failed = done.stdout.decode("utf-8", "replace"), done.returncode != 0
        except subprocess.TimeoutExpired as expired:
            self.output, self.failed = (expired.stdout or b"").decode("utf-8", "replace"), True

    def serve(self) -> str:
        """Run it against the machine, until it has gone; what it has printed."""
        self._thread.start()
        self.stub.serve(pyhv.until.When(lambda: not self._thread.is_alive()))
        self._thread.join()
        return self.output


def debugged(guest: pyhv.Guest, machine: pyhv.Machine, *commands: str, symbols: bool = True) -> str:
    """What gdb prints when it runs these commands on a guest, which goes on to its end if it is let go."""
    from pyhv.images.source import symbol_file

    require_gdb()
    file = symbol_file(guest.origin) if symbols else None
    with machine.gdb(guest=guest) as stub:
        return Gdb(stub, commands, file).serve()
