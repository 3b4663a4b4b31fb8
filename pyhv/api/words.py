# SPDX-License-Identifier: GPL-2.0-only
"""What people write for sizes and patterns, as numbers and bytes.

>>> pages("128M"), pages(4096), pages("1.5G")
(32768, 1, 393216)
>>> pages("12 apples")
Traceback (most recent call last):
pyhv.errors.ConfigError: '12 apples' is no amount of memory; write 128M, 1G or a number of bytes.
"""

import re
from fractions import Fraction
from typing import Final

from pyhv.address import PAGE_SHIFT
from pyhv.errors import ConfigError

_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30}


def pages(amount: str | int) -> int:
    """An amount of memory, "128M" or bytes, in whole page frames. ConfigError.

    Whether so much is possible is for those to say who are to provide it.
    """
    if isinstance(amount, int):
        size = Fraction(amount)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?\s*", amount, re.IGNORECASE)
        if match is None:
            raise ConfigError(f"{amount!r} is no amount of memory; write 128M, 1G or a number of bytes.")
        size = Fraction(match[1]) * (1 << _UNITS[match[2].upper()])
    if size % (1 << PAGE_SHIFT):
        raise ConfigError(f"{amount!r} is no whole number of pages of {1 << PAGE_SHIFT} bytes.")
    return int(size) >> PAGE_SHIFT


def expression(pattern: "str | bytes | re.Pattern[str] | re.Pattern[bytes]") -> "re.Pattern[bytes]":
    """A regular expression for what a guest prints, which is bytes. ConfigError: it is none."""
    source = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    flags = pattern.flags & ~re.UNICODE if isinstance(pattern, re.Pattern) else 0
    raw = source.encode("utf-8") if isinstance(source, str) else source
    try:
        return re.compile(raw, flags)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression ({error}).") from error
