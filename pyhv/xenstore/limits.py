# SPDX-License-Identifier: GPL-2.0-only
"""What the store refuses: its errors, its quotas and its rules for paths.

The numbers are those of the public header io/xs_wire.h (lengths) and of xenstored's defaults (quotas); the
path rules are those of docs/misc/xenstore.txt. This module knows neither nodes nor messages: it turns a
path that somebody sent into a canonical absolute one, or says no.
"""

import re
from dataclasses import dataclass

PAYLOAD_MAX = 4096
"""Longest payload of one message, bytes; a longer one ends the connection."""
ABSOLUTE_PATH_MAX = 3072
"""Longest absolute path, bytes, without its NUL."""
RELATIVE_PATH_MAX = 2048
"""Longest relative path or special watch name, bytes, without its NUL."""

DOM0 = 0
"""The one privileged domain: permissions and quotas do not bind it."""
DOMID_MAX = 0x7FEF
"""Highest number that a real domain may have (those above are reserved names, such as DOMID_SELF)."""

ERROR_NAMES = frozenset(
    {
        "EINVAL",
        "EACCES",
        "EEXIST",
        "EISDIR",
        "ENOENT",
        "ENOMEM",
        "ENOSPC",
        "EIO",
        "ENOTEMPTY",
        "ENOSYS",
        "EROFS",
        "EBUSY",
        "EAGAIN",
        "EISCONN",
        "E2BIG",
        "EPERM",
    }
)
"""The errno names that the protocol can express; errors travel as text."""


class StoreError(Exception):
    """The store's refusal. `name` is an errno name as the client sees it; `why` is for people only."""

    def __init__(self, name: str, why: str = "") -> None:
        if name not in ERROR_NAMES:
            raise ValueError(f"{name} is not an error of the xenstore protocol")
        super().__init__(name, why)
        self.name = name
        self.why = why

    def __str__(self) -> str:
        return f"{self.name}: {self.why}" if self.why else self.name


@dataclass(frozen=True, slots=True)
class Quota:
    """How much one unprivileged domain may hold; the defaults are xenstored's.

    Exceeding answers ENOSPC, except for watches, where xenstored answers E2BIG.
    """

    nodes: int = 1000
    """Nodes that a domain may own."""
    entry_bytes: int = 2048
    """A node's record - header, permissions, value, children's names - must stay below this size."""
    watches: int = 128
    """Watches that one domain may have."""
    transactions: int = 10
    """Transactions that one domain may have open at once."""
    transaction_nodes: int = 1024
    """Different nodes that one transaction may touch."""
    permissions: int = 5
    """Entries of one node's permission list, the owner's included."""
    event_bytes: int = 256 * 1024
    """Watch events that wait for a domain that does not read them, bytes; beyond, events are dropped."""


_LEGAL = re.compile(r"[-A-Za-z0-9_/@]+", re.ASCII)


def domain_path(domid: int) -> str:
    """The home directory of a domain: what its relative paths are relative to."""
    return f"/local/domain/{domid}"


def canonical(path: str, domid: int) -> str:
    """Turn a path as domain `domid` wrote it into an absolute one.

    Raises `StoreError` EINVAL for an illegal character, a wrong length, an empty component or a trailing
    slash. `/` alone is legal.
    """
    if path.startswith("/"):
        if len(path) > ABSOLUTE_PATH_MAX:
            raise StoreError("EINVAL", f"absolute path of {len(path)} bytes")
        absolute = path
    else:
        if len(path) > RELATIVE_PATH_MAX:
            raise StoreError("EINVAL", f"relative path of {len(path)} bytes")
        absolute = f"{domain_path(domid)}/{path}"
    if not _LEGAL.fullmatch(absolute):
        raise StoreError("EINVAL", f"illegal character in path {absolute[:64]!r}")
    if "//" in absolute or (absolute.endswith("/") and absolute != "/"):
        raise StoreError("EINVAL", f"empty component in path {absolute[:64]!r}")
    return absolute


def special(name: str) -> str:
    """Check the name of a special watch (`@introduceDomain`, `@releaseDomain`, ...); EINVAL otherwise."""
    if not name.startswith("@") or len(name) > RELATIVE_PATH_MAX or not _LEGAL.fullmatch(name):
        raise StoreError("EINVAL", f"bad special name {name[:64]!r}")
    return name


def components(path: str) -> list[str]:
    """Split a canonical absolute path into names; `/` has none."""
    return [] if path == "/" else path[1:].split("/")


def joined(parent: str, name: str) -> str:
    """The path of the child `name` of the canonical path `parent`."""
    return f"/{name}" if parent == "/" else f"{parent}/{name}"


def parent_of(path: str) -> str:
    """The canonical path above `path`; the root is its own parent."""
    return path.rpartition("/")[0] or "/"


def lineage(path: str) -> list[str]:
    """The canonical path and all those above it, from the root down to the path itself."""
    found = ["/"]
    for name in components(path):
        found.append(joined(found[-1], name))
    return found
