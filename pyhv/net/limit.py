# SPDX-License-Identifier: GPL-2.0-only
"""How fast a network device may send: xl's `rate=10Mb/s@20ms`, as credit that is renewed in machine time.

The words are those of xl-network-configuration(5): a number with K, M or G, in b(its) or B(ytes) a second,
and how often the credit is renewed, 50 ms unless it is said. Each time the device gets the bytes of one
interval; what it does not use it keeps, up to 128 KiB or one interval, whatever is more, so that a large
frame can always be sent. Who has not enough credit waits: nothing is dropped.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Final

from pyhv.errors import ConfigError
from pyhv.frozen import frozen
from pyhv.state import Nanoseconds, given

LEAST_BURST: Final = 128 << 10
"""Bucket that may always be kept, so that a frame of any size is sent at last."""
_FORM: Final = re.compile(r"(\d+)([KMG]?)([bB])/s(?:@(\d+)([mu]?)s)?", re.ASCII)
_FACTOR: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_UNIT_NS: Final = {"": 10**9, "m": 10**6, "u": 10**3}
_USUAL_INTERVAL: Final = 50 * 10**6
_LONGEST: Final = 10 * 10**9
_FASTEST: Final = 10**12


@frozen
class Rate:
    """So many bytes each time, and how often (ns)."""

    bytes_each: int
    interval_ns: int


def parse(text: str) -> Rate:
    """`rate=` as xl has it. ConfigError: it is none, or one that lets nothing through."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(f"rate={text}: write bits or bytes a second, as in rate=10Mb/s or rate=1MB/s@20ms.")
    number, factor, unit, interval, interval_unit = found.groups()
    bits = int(number) * _FACTOR[factor] * (8 if unit == "B" else 1)
    interval_ns = _USUAL_INTERVAL if interval is None else int(interval) * _UNIT_NS[interval_unit]
    if bits > _FASTEST or not 0 < interval_ns <= _LONGEST:
        raise ConfigError(f"rate={text}: at most 1000 Gb/s, and an interval of at most 10 s.")
    each = bits * interval_ns // (8 * 10**9)
    if each == 0:
        raise ConfigError(f"rate={text} is less than a byte each time: raise the rate or the interval.")
    return Rate(each, interval_ns)


@dataclass(slots=True)
class Bucket:
    """What a device may still send."""

    rate: Rate = given("its configuration")
    left: Annotated[int, range(1 << 62)] = 0
    renewed: Nanoseconds = 0
    """When credit was last added."""

    def take(self, size: int, now: int) -> int | None:
        """Send that many bytes at `now` (ns), if there is credit for them. Else: when there will be."""
        rate = self.rate
        times = (now - self.renewed) // rate.interval_ns
        if times > 0:
            self.left = min(self.left + times * rate.bytes_each, max(LEAST_BURST, rate.bytes_each))
            self.renewed += times * rate.interval_ns
        if size <= self.left:
            self.left -= size
            return None
        wanted = -(-(size - self.left) // rate.bytes_each)
        return self.renewed + wanted * rate.interval_ns
