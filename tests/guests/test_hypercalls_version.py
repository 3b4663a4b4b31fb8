# SPDX-License-Identifier: GPL-2.0-only
"""xen_version: what the hypervisor says of itself."""

import struct

import pytest

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Assist, Feature, Physdev, Xenver
from pyhv.abi.physdev import PhysdevSetIopl
from pyhv.abi.structs import FeatureInfo
from pyhv.testing.guest_machine import UNMAPPED, Paused

DIRTY = b"\xaa" * 4096

FIXED = {
    Xenver.EXTRAVERSION: 16,
    Xenver.COMPILE_INFO: 144,
    Xenver.CAPABILITIES: 1024,
    Xenver.CHANGESET: 64,
    Xenver.PLATFORM_PARAMETERS: 8,
    Xenver.GUEST_HANDLE: 16,
    Xenver.COMMANDLINE: 1024,
}
"""Sub-operation: size of what it writes."""


def test_version_number_needs_no_argument(guest: Paused) -> None:
    assert guest.xen_version(Xenver.VERSION, 0) == 4 << 16 | 17
    assert guest.xen_version(Xenver.VERSION, UNMAPPED) == 4 << 16 | 17


@pytest.mark.parametrize(("command", "size"), FIXED.items())
def test_fixed_size_answers_are_padded_with_zeros_and_end_in_time(
    guest: Paused, command: Xenver, size: int
) -> None:
    guest.put(DIRTY)
    assert guest.xen_version(command, guest.scratch) == 0
    answer = guest.get(size)
    assert guest.get(8, size) == DIRTY[:8], "nothing behind the structure is touched"
    assert guest.xen_version(command, UNMAPPED) == -Errno.EFAULT
    if command in (Xenver.PLATFORM_PARAMETERS, Xenver.GUEST_HANDLE):
        return
    pieces = [answer]
    if command is Xenver.COMPILE_INFO:
        pieces = [answer[:64], answer[64:80], answer[80:112], answer[112:]]
    for piece in pieces:
        text, nul, rest = piece.partition(b"\0")
        assert nul
        assert text.isascii()
        assert not rest.strip(b"\0")


def test_what_the_answers_say(guest: Paused) -> None:
    guest.xen_version(Xenver.CAPABILITIES, guest.scratch)
    assert guest.get(32) == b"xen-3.0-x86_64 xen-3.0-x86_32p \0"
    guest.xen_version(Xenver.PLATFORM_PARAMETERS, guest.scratch)
    assert guest.words(guest.scratch, 1) == (0xFFFF800000000000,)
    guest.xen_version(Xenver.COMMANDLINE, guest.scratch)
    assert guest.get(9) == b"<denied>\0"


def features(guest: Paused) -> int:
    """The first submap."""
    info = FeatureInfo(submap_idx=0, submap=0xFFFFFFFF)
    assert guest.xen_version(Xenver.GET_FEATURES, info) == 0
    return info.submap


def test_features(guest: Paused) -> None:
    found = features(guest)
    assert found & 0xF == 0, "neither writable tables nor translation nor supervisor mode"
    assert found == sum(1 << feature for feature in Feature)
    assert not found >> 4 & 1, "base pointers above 4 GiB are an assist of 32-bit guests"
    assert guest.xen_version(Xenver.GET_FEATURES, FeatureInfo(submap_idx=1)) == -Errno.EINVAL
    assert guest.vm_assist(0, Assist.PAE_EXTENDED_CR3) == 0
    assert features(guest) >> 4 & 1


def test_page_size_takes_no_argument(guest: Paused) -> None:
    assert guest.xen_version(Xenver.PAGESIZE, 0) == 4096
    assert guest.xen_version(Xenver.PAGESIZE, guest.scratch) == -Errno.EINVAL


def test_other_versions(guest: Paused) -> None:
    assert guest.xen_version(Xenver.BUILD_ID, guest.scratch) == -Errno.EPERM
    for command in (11, 14, 99, 0xFFFFFFFF):
        assert guest.xen_version(command, guest.scratch) == -Errno.ENOSYS


def test_version_of_32_bit_guests(narrow: Paused) -> None:
    narrow.put(DIRTY)
    assert narrow.xen_version(Xenver.PLATFORM_PARAMETERS, narrow.scratch) == 0
    assert narrow.get(8) == struct.pack("<I", 0xF5800000) + DIRTY[:4]
    assert narrow.physdev_op(Physdev.SET_IOPL, PhysdevSetIopl(iopl=2)) == 0
    assert narrow.physdev_op_compat(narrow.put(struct.pack("<II", Physdev.SET_IOPL, 3).ljust(16, b"\0"))) == 0
    assert narrow.vcpu.ports.iopl == 3
