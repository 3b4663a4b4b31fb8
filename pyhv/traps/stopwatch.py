# SPDX-License-Identifier: GPL-2.0-only
"""A wrapper around an exit sink that measures how long handlers take, for the statistics.

Timing every exit costs some of what it measures, so it is installed only when asked for.
"""

from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any, ClassVar, Final

from pyhv.cpu.engine import ExitSink

_METHODS: Final = (
    "exception", "invalid_opcode", "syscall", "sysenter",
    "cpuid", "clock_read", "port_read", "port_write", "port_fault",
)  # fmt: skip


class Stopwatch:
    """Accumulates handler time of any number of sinks in `spent_ns`."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {"spent_ns": "the host's time"}

    def __init__(self) -> None:
        self.spent_ns = 0

    def around(self, sink: ExitSink) -> ExitSink:
        """A sink that passes everything on to `sink`, timed."""
        return _Timed(self, sink)

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """`method`, with its duration added to the account."""

        def run(*arguments: int) -> Any:
            began = perf_counter_ns()
            try:
                return method(*arguments)
            finally:
                self.spent_ns += perf_counter_ns() - began

        return run


class _Timed:
    """An `ExitSink` made of timed methods."""

    exception: Callable[[int], None]
    invalid_opcode: Callable[[], None]
    syscall: Callable[[int], None]
    sysenter: Callable[[int], None]
    cpuid: Callable[[], bool]
    clock_read: Callable[[bool], None]
    port_read: Callable[[int, int], int | None]
    port_write: Callable[[int, int, int], bool]
    port_fault: Callable[[], None]

    def __init__(self, watch: Stopwatch, sink: ExitSink) -> None:
        for name in _METHODS:
            setattr(self, name, watch.timed(getattr(sink, name)))
