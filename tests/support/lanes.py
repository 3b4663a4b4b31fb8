# SPDX-License-Identifier: GPL-2.0-only
"""Runs of `pyhv` in one lane or the other, and tests that replace a part of a module that may be compiled."""

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from pyhv import lane


def require(name: str) -> None:
    """Skip a test where a lane cannot be had; in CI it must be there."""
    why = lane.why_not(name)
    if why and "CI" in os.environ:
        pytest.fail(f"the {name} lane: {why}")
    if why:
        pytest.skip(f"the {name} lane: {why}")


def require_native() -> None:
    """Skip a test where the native lane cannot be had; in CI it must be there."""
    require(lane.NATIVE)


def pyhv(
    *arguments: str, within: str | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in the lane that is named, or in that which it chooses itself."""
    inherited = {name: value for name, value in os.environ.items() if name != lane.SWITCH}
    chosen = {lane.SWITCH: within} if within is not None else {}
    return subprocess.run(
        [sys.executable, "-m", "pyhv.cli.main", *arguments],
        env={**inherited, **chosen, **(environment or {})}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def plain_lane(reason: str) -> pytest.MarkDecorator:
    """A test that means something only where the modules of `lane.HOT` are interpreted, and why."""
    return pytest.mark.skipif(lane.ACTIVE.name != lane.PLAIN, reason=f"compiled: {reason}")
