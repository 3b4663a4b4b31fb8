# SPDX-License-Identifier: GPL-2.0-only
"""What people write for sizes and patterns, as numbers and bytes.

>>> pages("128M"), pages(4096), pages("1.5G")
(32768, 1, 393216)
>>> pages("12 apples")
Traceback (most recent call last):
pyhv.errors.ConfigError: '12 apples' is no amount of memory; write 128M, 1G or a number of bytes.
"""

import re
from typing import Final

from pyhv.address import PAGE_SHIFT
from pyhv.errors import ConfigError

_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30}


def pages(amount: str | int) -> int:
    """An amount of memory, "128M" or bytes, in whole page frames. ConfigError.

    Whether so much is possible is for those to say who are to provide it.
    """
    if isinstance(amount, int):
        size, parts = amount, 1
    else:
        match = re.fullmatch(r"\s*(\d+)(?:\.(\d+))?\s*([KMG]?)(?:i?B)?\s*", amount, re.IGNORECASE)
        if match is None:
            raise ConfigError(f"{amount!r} is no amount of memory; write 128M, 1G or a number of bytes.")
        decimals = match[2] or ""
        size, parts = int(match[1] + decimals) << _UNITS[match[3].upper()], 10 ** len(decimals)
    found, rest = divmod(size, parts << PAGE_SHIFT)
    if rest:
        raise ConfigError(f"{amount!r} is no whole number of pages of {1 << PAGE_SHIFT} bytes.")
    return found


def expression(pattern: "str | bytes | re.Pattern[str] | re.Pattern[bytes]") -> "re.Pattern[bytes]":
    """A regular expression for what a guest prints, which is bytes. ConfigError: it is none."""
    source = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    flags = pattern.flags & ~re.UNICODE if isinstance(pattern, re.Pattern) else 0
    raw = source.encode("utf-8") if isinstance(source, str) else source
    try:
        return re.compile(raw, flags)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression ({error}).") from error
