# SPDX-License-Identifier: GPL-2.0-only
"""Who may do what with a node.

A node's permissions are a list of (domain, letter). The first entry is special twice over: its domain *owns*
the node and may do everything, and its letter is what every domain not listed may do. Letters: `n` nothing,
`r` read, `w` write, `b` both. On the wire an entry is the letter and the decimal domain number: `n0`, `r5`.
Specified in docs/misc/xenstore.txt. This module knows no paths.
"""

import enum
import re
from collections.abc import Iterable
from typing import Final

from pyhv.frozen import frozen
from pyhv.xenstore.limits import DOM0, DOMID_MAX, StoreError


class Access(enum.IntFlag):
    """What a domain may do with a node."""

    NONE = 0
    READ = 1
    WRITE = 2
    OWNER = 4
    """May change the permissions."""


_ALL: Final = Access.READ | Access.WRITE | Access.OWNER
_ACCESS_OF_LETTER: Final = {
    "n": Access.NONE,
    "r": Access.READ,
    "w": Access.WRITE,
    "b": Access.READ | Access.WRITE,
}
_LETTER_OF_ACCESS: Final = {access: letter for letter, access in _ACCESS_OF_LETTER.items()}
_ENTRY: Final = re.compile(r"([nrwb])([0-9]{1,5})", re.ASCII)


@frozen
class Permission:
    """One entry of a permission list: `access` never contains `OWNER`, which is a matter of position."""

    domid: int
    access: Access

    @classmethod
    def parse(cls, text: str) -> "Permission":
        """Read an entry such as `r5`. Raises `StoreError` EINVAL."""
        match = _ENTRY.fullmatch(text)
        if match is None or int(match[2]) > DOMID_MAX:
            raise StoreError("EINVAL", f"bad permission {text[:16]!r}")
        return cls(int(match[2]), _ACCESS_OF_LETTER[match[1]])

    def __str__(self) -> str:
        return f"{_LETTER_OF_ACCESS[self.access]}{self.domid}"


@frozen
class Permissions:
    """A node's whole list, never empty."""

    entries: tuple[Permission, ...]

    def __post_init__(self) -> None:
        if not self.entries:
            raise StoreError("EINVAL", "a node needs an owner")

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Permissions":
        """Read a list such as `["n0", "r5"]`. Raises `StoreError` EINVAL."""
        return cls(tuple(Permission.parse(text) for text in texts))

    @property
    def owner(self) -> int:
        """The domain that may do everything and whose quota pays for the node."""
        return self.entries[0].domid

    def of(self, domid: int) -> Access:
        """What domain `domid` may do. Domain 0 and the owner may do everything."""
        if domid in (DOM0, self.owner):
            return _ALL
        for entry in self.entries[1:]:
            if entry.domid == domid:
                return entry.access
        return self.entries[0].access

    def inherited_by(self, creator: int) -> "Permissions":
        """The list of a node that `creator` makes below one with this list.

        A child starts with its parent's list; an unprivileged creator takes the owner's place in it.
        """
        if creator in (DOM0, self.owner):
            return self
        return Permissions((Permission(creator, self.entries[0].access), *self.entries[1:]))

    def without(self, domid: int) -> "Permissions":
        """The list once domain `domid`, which is not the owner, is gone: its number may be used again."""
        kept = tuple(entry for entry in self.entries[1:] if entry.domid != domid)
        return self if len(kept) == len(self.entries) - 1 else Permissions((self.entries[0], *kept))

    def __str__(self) -> str:
        return ",".join(map(str, self.entries))


PRIVATE_TO_DOM0: Final = Permissions.parse(["n0"])
"""The root's list, and so that of everything dom0 makes without saying otherwise."""
