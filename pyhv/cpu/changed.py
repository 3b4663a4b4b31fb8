# SPDX-License-Identifier: GPL-2.0-only
"""What an engine knows of the changes that are made to it: `cpu/tuning/` makes them, from one layer above."""

from typing import Protocol

from pyhv.cpu.ram import Ram


class TunedBlock(Protocol):
    """The words that the changes keep for one engine, by name."""

    def __getitem__(self, name: str) -> int: ...

    def __setitem__(self, name: str, value: int) -> None: ...

    def __contains__(self, name: str) -> bool:
        """Whether some change has that word."""

    def array(self, name: str, count: int) -> memoryview | None:
        """The `count` 32-bit words that the word `name` points to, None if no change has that."""

    def detach(self) -> None:
        """The engine is about to be closed."""


class EngineTuning(Protocol):
    """The changes that were proven on this host."""

    @property
    def active(self) -> bool:
        """Whether there are any."""

    def attach(self, handle: int, ram: Ram, counter: tuple[int, int] = (0, 0)) -> TunedBlock | None:
        """Change a new engine over `ram`; None if it stays as it is."""
