# SPDX-License-Identifier: GPL-2.0-only
"""What the pytest plugin can be told: options of the command line, and the same in the ini file.

The command line wins. What is wrong with a value is a usage error of pytest, one sentence.
"""

import random
from typing import Any, Final

import pytest

from pyhv.frozen import frozen

SEED, TIMEOUT = "pyhv_seed", "pyhv_timeout"
DEFAULT_TIMEOUT: Final = 120.0
"""Seconds of the host's time for each phase of a test: its setup, itself, its teardown."""
RANDOM: Final = "random"


@frozen
class Settings:
    """What holds for the session."""

    seed: int
    timeout: float
    """Seconds of the host's time; 0: no limit."""
    streams: bool
    """Consoles go to standard output as they come: pytest captures nothing (-s)."""

    @classmethod
    def of(cls, config: pytest.Config, seed: int | None = None) -> "Settings":
        """As options and ini file say; the `seed` may be given already."""
        return cls(
            seed=_seed(_said(config, SEED)) if seed is None else seed,
            timeout=_timeout(_said(config, TIMEOUT)),
            streams=config.getoption("capture") == "no",
        )


SETTINGS: Final = pytest.StashKey[Settings]()


def add(parser: pytest.Parser) -> None:
    """Have pytest know them."""
    group = parser.getgroup("pyhv", "Xen PV guests (pyhv)")
    group.addoption(
        "--pyhv-seed", dest=SEED, metavar="N", help="seed of all machines: the same gives the same run, "
        "'random' another one each time (ini: pyhv_seed; 0)",
    )  # fmt: skip
    group.addoption(
        "--pyhv-timeout", dest=TIMEOUT, metavar="SECONDS", help="time on the wall for each phase of a test: "
        f"a guest that hangs fails it; 0: no limit (ini: pyhv_timeout; {DEFAULT_TIMEOUT:g})",
    )  # fmt: skip
    parser.addini(SEED, "seed of all machines, or 'random'", default="0")
    parser.addini(TIMEOUT, "seconds on the wall for each phase of a test", default=str(DEFAULT_TIMEOUT))


def settle_seed(config: pytest.Config) -> None:
    """Choose the seed if it is to be random: once, so that the workers of pytest-xdist get the same."""
    if _said(config, SEED) == RANDOM:
        setattr(config.option, SEED, str(random.SystemRandom().randrange(1 << 32)))


def _said(config: pytest.Config, name: str) -> str:
    given: Any = config.getoption(name)
    return str(config.getini(name) if given is None else given)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 64):
        raise pytest.UsageError(f"--pyhv-seed is {text!r}: a number below 2**64 or the word random is wanted")
    return int(text)


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise pytest.UsageError(f"--pyhv-timeout is {text!r}: a number of seconds is wanted, 0 for no limit")
    return seconds
