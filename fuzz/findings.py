# SPDX-License-Identifier: GPL-2.0-only
"""Findings: what makes two of them the same, how one is made small, where it is kept."""

import hashlib
import time
import traceback
from itertools import pairwise
from pathlib import Path

from fuzz.target import Finding, Target

MINIMISE_SECONDS = 40.0


def signature(error: BaseException) -> str:
    """Kind of error and the innermost place in pyhv (or the oracle's kind) - equal for equal causes."""
    if isinstance(error, Finding):
        return f"Finding:{error.kind}"
    place = "?"
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if "pyhv" in path.parts or place == "?":
            place = f"{path.stem}.{frame.name}"
    return f"{type(error).__name__}:{place}"


def outcome(target: Target, data: bytes) -> str | None:
    """Replay an input from nothing; the signature of what is wrong, None if nothing is."""
    try:
        target.replay(data)
    except Exception as error:
        target.abandon()
        return signature(error)
    return None


def minimise(target: Target, data: bytes, wanted: str, seconds: float = MINIMISE_SECONDS) -> bytes:
    """A shorter input with the same signature: leave out whole steps, as long as time allows."""
    deadline = time.monotonic() + seconds
    if outcome(target, data) != wanted:
        return data
    data = data[: _needed(target, data, wanted, deadline)]
    pieces = _pieces(target, data)
    size = max(len(pieces) // 2, 1)
    while time.monotonic() < deadline:
        at, shorter = 0, False
        while at < len(pieces) and time.monotonic() < deadline:
            rest = pieces[:at] + pieces[at + size :]
            if rest and outcome(target, b"".join(rest)) == wanted:
                pieces, shorter = rest, True
            else:
                at += size
        if size == 1 and not shorter:
            break
        size = max(size // 2, 1)
    return b"".join(pieces)


def _needed(target: Target, data: bytes, wanted: str, deadline: float) -> int:
    """The shortest beginning, in whole steps, that still shows it: bisected."""
    outcome(target, data)
    ends = [*target.steps[1:], len(data)]
    low, high = 0, len(ends) - 1
    while low < high and time.monotonic() < deadline:
        middle = (low + high) // 2
        if outcome(target, data[: ends[middle]]) == wanted:
            high = middle
        else:
            low = middle + 1
    return ends[high] if ends else len(data)


def _pieces(target: Target, data: bytes) -> list[bytes]:
    outcome(target, data)
    bounds = [*target.steps, len(data)]
    return [data[start:end] for start, end in pairwise(bounds) if end > start]


def save(directory: Path, data: bytes, wanted: str) -> Path:
    """Keep an input under a name that says what it does."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = "".join(c if c.isalnum() else "-" for c in wanted)[:60]
    path = directory / f"{kind}-{hashlib.sha256(data).hexdigest()[:8]}"
    path.write_bytes(data)
    return path
