# SPDX-License-Identifier: GPL-2.0-only
"""How fast a network device may send: xl's `rate=10Mb/s@20ms`, as credit that is renewed in machine time.

The words are those of xl-network-configuration(5): a number with K, M or G, in b(its) or B(ytes) a second,
and how often the credit is renewed, 50 ms unless it is said. Each time the device gets the bytes of one
interval; what it does not use it keeps, up to 128 KiB or one interval, whatever is more. Who has credit sends
a frame of any size, and waits until the debt is paid off: nothing is dropped.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Final

from pyhv.errors import ConfigError
from pyhv.frozen import frozen
from pyhv.state import Nanoseconds, given

LEAST_BURST: Final = 128 << 10
"""Credit that may always be kept."""
MOST_DEBT: Final = 1 << 17
_FORM: Final = re.compile(r"(\d+)([KMG]?)([bB])/s(?:@(\d+)([mu]?)s)?", re.ASCII)
_FACTOR: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_UNIT_NS: Final = {"": 10**9, "m": 10**6, "u": 10**3}
_USUAL_INTERVAL: Final = 50 * 10**6
_LONGEST: Final = 10 * 10**9
_FASTEST: Final = 10**12


@frozen
class Rate:
    """So many bytes each time, and how often (ns)."""

    bytes_each: Annotated[int, range(1, 1 << 50)]
    interval_ns: Annotated[int, range(1, _LONGEST + 1)]


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
    """What a device may still send. Whoever has any credit may send a frame, and is in debt after it."""

    rate: Rate = given("its configuration")
    left: Annotated[int, range(-MOST_DEBT, 1 << 62)] = 0
    renewed: Nanoseconds = 0
    """When credit was last added."""

    def wait(self, now: int) -> int | None:
        """None: a frame may be sent at `now` (ns). Else: when one may be."""
        rate = self.rate
        times = (now - self.renewed) // rate.interval_ns
        if times > 0:
            self.left = min(self.left + times * rate.bytes_each, max(LEAST_BURST, rate.bytes_each))
            self.renewed += times * rate.interval_ns
        if self.left > 0:
            return None
        return self.renewed + (-self.left // rate.bytes_each + 1) * rate.interval_ns

    def spend(self, size: int) -> None:
        """A frame of so many bytes has been sent."""
        self.left -= size
