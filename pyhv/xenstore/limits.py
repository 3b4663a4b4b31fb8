# SPDX-License-Identifier: GPL-2.0-only
"""What the store refuses: its errors, its quotas and its rules for paths.

The numbers are those of the public header io/xs_wire.h (lengths) and of xenstored's defaults (quotas), and so
is what happens at their edges, which was tried on Debian's xenstored 4.17; the path rules are those of
docs/misc/xenstore.txt. This module knows neither nodes nor messages: it turns a
path that somebody sent into a canonical absolute one, or says no.
"""

import re
from typing import Final

from pyhv.frozen import frozen

PAYLOAD_MAX: Final = 4096
"""Longest payload of one message, bytes; a longer one ends the connection."""
PATH_MAX: Final = 2048
"""Longest path or special watch name, bytes, without its NUL; of a path in a domain's home, what follows
`/local/domain/<domid>/`. (The header's limit of 3072 bytes for absolute paths is above that of xenstored.)"""

DOM0: Final = 0
"""The one privileged domain: permissions and quotas do not bind it."""
DOMID_MAX: Final = 0x7FEF
"""Highest number that a real domain may have (those above are reserved names, such as DOMID_SELF)."""

ERROR_NAMES: Final = frozenset(
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


@frozen
class Quota:
    """How much one unprivileged domain may hold; the defaults are xenstored's.

    Exceeding answers ENOSPC, except for watches, where xenstored answers E2BIG. Watches and transactions
    are compared with their quota before the new one is counted, so that one more than the quota can be had.
    """

    nodes: int = 1000
    """Nodes that a domain may own."""
    entry_bytes: int = 2048
    """A node's record - header, permissions, value, children's names - must stay below this size."""
    watches: int = 128
    """A domain that has more watches than this gets no other."""
    transactions: int = 10
    """A domain that has more transactions open than this gets no other."""
    transaction_nodes: int = 1024
    """Different nodes that one transaction may touch; one that touched more can only be dropped."""
    permissions: int = 5
    """Entries of one node's permission list, the owner's included."""
    event_bytes: int = 256 * 1024
    """Watch events that wait for a domain that does not read them, bytes; beyond, events are dropped."""


_HOME: Final = re.compile(r"/local/domain/[0-9]{1,5}/")
_LEGAL: Final = re.compile(r"[-A-Za-z0-9_/@]+", re.ASCII)


def domain_path(domid: int) -> str:
    """The home directory of a domain: what its relative paths are relative to."""
    return f"/local/domain/{domid}"


def canonical(path: str, domid: int) -> str:
    """Turn a path as domain `domid` wrote it into an absolute one.

    Raises `StoreError` EINVAL for an illegal character, a wrong length, an empty component, a trailing slash
    or a special name. `/` alone is legal.
    """
    if path.startswith("@"):
        raise StoreError("EINVAL", f"{path[:64]!r} is a special name, not a node's")
    absolute = path if path.startswith("/") else f"{domain_path(domid)}/{path}"
    home = _HOME.match(absolute)
    if len(absolute) - (home.end() if home else 0) > PATH_MAX:
        raise StoreError("EINVAL", f"path of {len(path)} bytes")
    if not _LEGAL.fullmatch(absolute):
        raise StoreError("EINVAL", f"illegal character in path {absolute[:64]!r}")
    if "//" in absolute or (absolute.endswith("/") and absolute != "/"):
        raise StoreError("EINVAL", f"empty component in path {absolute[:64]!r}")
    return absolute


def special(name: str) -> str:
    """Check the name of a special watch (`@introduceDomain`, `@releaseDomain`, ...); EINVAL otherwise."""
    if not name.startswith("@") or len(name) > PATH_MAX or not _LEGAL.fullmatch(name):
        raise StoreError("EINVAL", f"bad special name {name[:64]!r}")
    return name


def components(path: str) -> list[str]:
    """Split a canonical absolute path into names; `/` has none."""
    return [] if path == "/" else path[1:].split("/")


def is_component(name: str) -> bool:
    """Whether a node can have this name."""
    return _LEGAL.fullmatch(name) is not None and "/" not in name


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
