# SPDX-License-Identifier: GPL-2.0-only
"""mmu_update as a whole: what the caller is told of a list that ends early."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.structs import MmuUpdate
from pyhv.testing.guest_machine import UNMAPPED, Paused, paused


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        yield made


def updated(guest: Paused, requests: int, count: int) -> tuple[int, int]:
    """The result of mmu_update, and what it says that it has done."""
    done = guest.put(struct.pack("<I", 99), 0x1000)
    result = guest.mmu_update_list(requests, count, done, DOMID_SELF)
    return result, struct.unpack("<I", guest.get(4, 0x1000))[0]


@pytest.mark.parametrize("count", [1, 2])
def test_of_a_list_that_cannot_be_read_none_is_done(guest: Paused, count: int) -> None:
    assert updated(guest, UNMAPPED, count) == (-Errno.EFAULT, 0)


@pytest.mark.parametrize("count", [1, 2])
def test_of_a_list_that_begins_with_a_refusal_none_is_done(guest: Paused, count: int) -> None:
    bad = MmuUpdate(ptr=guest.entry(guest.page(3)) | 7, val=0).pack()
    assert updated(guest, guest.put(bad * count), count) == (-Errno.ENOSYS, 0)


def test_what_comes_before_the_end_of_memory_is_done(guest: Paused) -> None:
    """One entry at the end of the last page that is mapped, one behind it."""
    at = guest.page(16) - MmuUpdate.size()
    assert guest.unmap(guest.page(16)) == 0
    page = guest.page(3)
    same = MmuUpdate(ptr=guest.entry(page), val=guest.domain.memory.ram.q[guest.entry(page) >> 3])
    guest.domain.memory.write(at, same.pack())
    assert updated(guest, at, 1) == (0, 1)
    assert updated(guest, at, 2) == (-Errno.EFAULT, 1)
