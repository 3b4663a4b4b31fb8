# SPDX-License-Identifier: GPL-2.0-only
"""MAC addresses: those of a machine's own making, and those that somebody asks for.

Xen's own range is 00:16:3e:xx:xx:xx. An address follows from the machine's seed, the domain and the number
of its network device, so that nobody has to remember it: within a machine no two are alike, for the last
three bytes are a permutation of (domain, device) that the seed chooses.
"""

import hashlib
import re
from typing import Final

from pyhv.errors import ConfigError

XEN_OUI: Final = bytes.fromhex("00163e")
BROADCAST: Final = b"\xff" * 6
DEVICES: Final = 1 << 8
"""Network devices of a domain, at most."""
_DOMAINS: Final = 1 << 16
_HALF: Final = 12
_ROUNDS: Final = 4
_FORM: Final = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(\1[0-9a-f]{2}){4}", re.IGNORECASE | re.ASCII)


def derived(seed: int, domid: int, device: int) -> bytes:
    """The address of a domain's network device on the machine with that seed."""
    if not (0 <= domid < _DOMAINS and 0 <= device < DEVICES):
        raise ValueError(f"no domain {domid} has a network device {device}")
    left, right = divmod(domid * DEVICES + device, 1 << _HALF)
    for turn in range(_ROUNDS):  # a Feistel network: whatever `_mixed` is, it can be undone
        left, right = right, left ^ _mixed(seed, turn, right)
    return XEN_OUI + (left << _HALF | right).to_bytes(3, "big")


def _mixed(seed: int, turn: int, half: int) -> int:
    digest = hashlib.sha256(f"mac {seed} {turn} {half}".encode()).digest()
    return int.from_bytes(digest[:2], "big") >> 16 - _HALF


def parse(text: str) -> bytes:
    """An address as somebody has written it. ConfigError: it is none, or none for a device."""
    if not _FORM.fullmatch(text):
        raise ConfigError(f"mac={text}: write six bytes in hexadecimal, as in mac=00:16:3e:01:02:03.")
    address = bytes.fromhex(text.replace("-", ":").replace(":", ""))
    if address[0] & 1:
        raise ConfigError(f"mac={text} is the address of a group: the first byte of a device's is even.")
    if not any(address):
        raise ConfigError(f"mac={text} is nobody's address; leave mac= out to have one made.")
    return address


def shown(address: bytes) -> str:
    """An address as people write it."""
    return address.hex(":")


def is_group(address: bytes) -> bool:
    """Whether an address is that of several: multicast, or broadcast."""
    return bool(address[0] & 1)
