# SPDX-License-Identifier: GPL-2.0-only
"""A store with two domains' homes, and clients of it as these domains have."""

from contextlib import AbstractContextManager

import pytest

from pyhv.xenstore.client import Client
from pyhv.xenstore.limits import StoreError
from pyhv.xenstore.store import Store

HOME = "/local/domain/1"


def two_homes() -> Store:
    """Domains 1 and 2 have homes, which are domain 0's and which they may read and write."""
    store = Store()
    for domid in (1, 2):
        store.mkdir(f"/local/domain/{domid}")
        store.set_permissions(f"/local/domain/{domid}", ["n0", f"b{domid}"])
    return store


def connect(store: Store, domid: int = 1) -> tuple[Client, list[tuple[str, bytes]]]:
    """A domain's client, and the list of what its watches tell it."""
    heard: list[tuple[str, bytes]] = []
    return store.connect(domid, lambda path, token: heard.append((path, token))), heard


def refused(name: str) -> AbstractContextManager[pytest.ExceptionInfo[StoreError]]:
    """The store refuses what is done within, with this errno."""
    return pytest.raises(StoreError, match=f"^{name}")
