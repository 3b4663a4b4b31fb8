# SPDX-License-Identifier: GPL-2.0-only
"""Changes of plain data - numbers, texts, bytes, lists, tables - as an input says: what a file that was made
up would have in it. Most stay plausible, so that a reader gets past its first checks.
"""

import copy
from typing import Any

from fuzz.source import Source

NUMBERS = (
    -1, 0, 1, 2, 3, 7, 8, 15, 31, 63, 64, 127, 255, 256, 511, 512, 1023, 4095, 4096, 0x7FEF, 0x7FF0, 0x7FF1,
    0x7FF2, 0x7FF4, 0xFFFF, 1 << 16, 1 << 17, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 47,
    0xFFFF_8000_0000_0000, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 31),
    -(1 << 63),
)  # fmt: skip
_TEXTS = ("", "/", "@", "n0", "credit", "rr", "paused", "running", "dying", "x" * 3000, "\0", "é")
_OTHERS: tuple[Any, ...] = (None, True, False, 3, "x", b"y", b"", [], {}, [[]], {"": None})


def number(source: Source) -> int:
    """One at which something ends, or a small one."""
    return source.pick(NUMBERS) if source.chance(128) else source.u8() - 128


def replaced(source: Source, root: Any) -> Any:
    """`root` with one thing in it changed; each level of it is as likely as its neighbours."""
    above: Any = None
    key: Any = None
    at = root
    while isinstance(at, dict | list) and at and not source.chance(8):
        above = at
        key = source.pick(list(at)) if isinstance(at, dict) else source.number(2) % len(at)
        at = at[key]
    changed = _strange(source, at, above)
    if above is None:
        return changed
    above[key] = changed
    return root


def _strange(source: Source, value: Any, above: Any) -> Any:
    """Something of the same kind, what stands beside it, or anything."""
    if source.chance(10):
        return copy.deepcopy(source.pick(_OTHERS))
    if source.chance(10) and above:
        return list(above.values())[source.u8() % len(above)] if isinstance(above, dict) else above[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _strange_number(source, value)
    if isinstance(value, bytes) and value:
        return _strange_bytes(source, value)
    if isinstance(value, str):
        return source.pick((*_TEXTS, value + "/a", value[:-1], value * 2))
    if isinstance(value, list) and value:
        at = source.number(2) % len(value)
        shorter = value[:at] + value[at + 1 :]
        return source.pick((shorter, [*value, value[at]], value[::-1], value[:at], []))
    if isinstance(value, dict) and value:
        gone = source.pick(list(value))
        return {name: held for name, held in value.items() if name != gone}
    return source.pick((None, 0, 1, b"", "", [], {}))


def _strange_number(source: Source, value: int) -> int:
    how = source.u8()
    if how < 100:
        return source.pick(NUMBERS)
    if how < 180:
        found = value + source.u8() - 128
    else:
        found = value ^ 1 << source.below(64)
    return min(max(found, -(1 << 63)), (1 << 64) - 1)


def _strange_bytes(source: Source, value: bytes) -> bytes:
    how, at = source.u8(), source.number(3) % len(value)
    if how < 20:
        return value[:at]
    if how < 40:
        return value + bytes(source.u8())
    if how < 120:
        at &= ~7
        word = (number(source) & (1 << 64) - 1).to_bytes(8, "little")
        return (value[:at] + word + value[at + 8 :])[: len(value)]
    return value[:at] + bytes([source.u8()]) + value[at + 1 :]


def scratch(source: Source, data: bytearray, times: int) -> None:
    """Other bytes at some places."""
    for _ in range(times):
        if data:
            data[source.number(3) % len(data)] = source.u8()
