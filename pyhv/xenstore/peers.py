# SPDX-License-Identifier: GPL-2.0-only
"""Domains that are to find each other: each has its peer's domid in `data/peer` of its home."""

from collections.abc import Iterable

from pyhv.xenstore.limits import domain_path
from pyhv.xenstore.store import Store


def introduce_peers(store: Store, domids: Iterable[int], couples: Iterable[tuple[int, int]] = ()) -> None:
    """Pair domains, each of which may then read the other's domid.

    `couples` belong together; the others of `domids` are paired in their order, and an odd one out is its own
    peer. StoreError: one is not in the store.
    """
    pairs = list(couples)
    taken = {domid for pair in pairs for domid in pair}
    rest = sorted(set(domids) - taken)
    pairs += zip(rest[::2], rest[1::2], strict=False)
    if len(rest) % 2:
        pairs.append((rest[-1], rest[-1]))
    for one, other in pairs:
        for domid, peer in ((one, other), (other, one)):
            path = f"{domain_path(domid)}/data/peer"
            store.write(path, peer)
            store.set_permissions(path, ["n0", f"r{domid}"])
