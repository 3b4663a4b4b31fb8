# SPDX-License-Identifier: GPL-2.0-only
"""The real gdb, in batch mode, against a machine of this process."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import pyhv
from pyhv.api.stub import GdbStub
from pyhv.images.source import symbol_file

_SECONDS = 100


def require_gdb() -> str:
    """Its path; skips the test where it is not installed, but never in CI."""
    found = shutil.which("gdb")
    if found is None:
        if "CI" in os.environ:
            pytest.fail("gdb is not installed")
        pytest.skip("gdb is not installed (apt-get install gdb)")
    return found


class Gdb:
    """A gdb that runs commands. `interrupted`: so many seconds after it has let the guests run, Ctrl-C."""

    def __init__(
        self,
        stub: GdbStub,
        commands: Sequence[str],
        symbols: Path | None = None,
        *,
        extended: bool = False,
        interrupted: float | None = None,
    ) -> None:
        self._stub, self._interrupted = stub, interrupted
        self._running_since: float | None = None
        arguments = [require_gdb(), "-nx", "-batch", "-ex", "set pagination off", "-ex", "set confirm off"]
        if symbols is not None:
            arguments += ["-ex", f"file {symbols}"]
        arguments += ["-ex", f"target {'extended-remote' if extended else 'remote'} {stub.address}"]
        for command in commands:
            arguments += ["-ex", command]
        self._process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "DEBUGINFOD_URLS": ""},
            start_new_session=True,
        )
        self._output = ""
        self._thread = threading.Thread(target=self._read)
        self._deadline = time.monotonic() + _SECONDS

    def _read(self) -> None:
        self._output = self._process.communicate()[0].decode("utf-8", "replace")

    def serve(self) -> str:
        """Run it against the machine, until it has gone; what it has printed."""
        self._thread.start()
        try:
            self._stub.serve(pyhv.until.When(self._has_gone))
            self._thread.join(max(self._deadline - time.monotonic(), 0))  # it has been told, and prints
        finally:
            self._process.kill()
            self._thread.join()
        return self._output

    def _has_gone(self) -> bool:
        now = time.monotonic()
        if self._interrupted is not None and self._stub.connected and not self._stub.waits:
            self._running_since = self._running_since or now
            if now - self._running_since > self._interrupted:
                self._interrupted = None
                self._process.send_signal(signal.SIGINT)
        return not self._thread.is_alive() or now > self._deadline


def debugged(
    guest: pyhv.Guest,
    machine: pyhv.Machine,
    *commands: str,
    symbols: bool = True,
    extended: bool = False,
    interrupted: float | None = None,
) -> str:
    """What gdb prints when it runs these commands on a guest."""
    require_gdb()
    file = symbol_file(guest.origin) if symbols else None
    with machine.gdb(guest=guest) as stub:
        return Gdb(stub, commands, file, extended=extended, interrupted=interrupted).serve()
