# SPDX-License-Identifier: GPL-2.0-only
"""Grant handles: the borrower's account."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.abi.grants import GrantStatus, MapFlag
from pyhv.address import Mfn
from pyhv.grants.maptrack import Mapping, Maptrack
from pyhv.grants.status import GrantError

HOST, DEVICE, READONLY = MapFlag.HOST, MapFlag.DEVICE, MapFlag.READONLY


def mapping(flags: MapFlag = HOST, frame: int = 0x777) -> Mapping:
    return Mapping(granter=1, ref=8, flags=flags, frame=Mfn(frame))


def test_lowest_handle_first() -> None:
    track = Maptrack()
    assert [track.add(mapping()) for _ in range(4)] == [0, 1, 2, 3]
    assert track.end(2, HOST)
    assert track.end(0, HOST)
    assert [track.add(mapping()) for _ in range(3)] == [0, 2, 4]
    assert len(track) == 5


@pytest.mark.promise("L-5")
def test_no_space() -> None:
    track = Maptrack(max_frames=1)
    assert track.limit == 256
    for _ in range(256):
        track.check_space()
        track.add(mapping())
    for action in (track.check_space, lambda: track.add(mapping())):
        with pytest.raises(GrantError) as refusal:
            action()
        assert refusal.value.status is GrantStatus.NO_SPACE
    track.end(77, HOST)
    assert track.add(mapping()) == 77


@pytest.mark.parametrize("handle", [-1, 1, 0xFFFF_FFFF])
def test_bad_handles(handle: int) -> None:
    track = Maptrack()
    track.add(mapping())
    for action in (
        lambda: track.get(handle),
        lambda: track.select(handle, 0, 0),
        lambda: track.end(handle, HOST),
    ):
        with pytest.raises(GrantError) as refusal:
            action()
        assert refusal.value.status == GrantStatus.BAD_HANDLE


def test_a_handle_dies_with_its_last_half() -> None:
    track = Maptrack()
    handle = track.add(mapping(HOST | DEVICE | READONLY | MapFlag(0x10000)))
    assert not track.end(handle, MapFlag(0))
    assert not track.end(handle, HOST)
    assert track.get(handle).flags == DEVICE | READONLY | MapFlag(0x10000)
    assert track.get(handle).readonly
    assert track.end(handle, DEVICE)
    with pytest.raises(GrantError):
        track.end(handle, DEVICE)


def test_what_an_unmap_means() -> None:
    track = Maptrack()
    both = track.add(mapping(HOST | DEVICE))
    host = track.add(mapping(HOST))
    entry, halves = track.select(both, 0x7000, 0x777000)
    assert (entry, halves) == (track.get(both), HOST | DEVICE)
    assert track.select(both, 0x7000, 0)[1] == HOST
    assert track.select(both, 0, 0x777000)[1] == DEVICE
    assert track.select(both, 0, 0)[1] == MapFlag(0)
    assert track.select(host, 0x7000, 0x1234)[1] == HOST, "it has no device half to mistake"
    with pytest.raises(GrantError) as refusal:
        track.select(both, 0x7000, 0x778000)
    assert refusal.value.status == GrantStatus.BAD_DEV_ADDR


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=100))
def test_like_a_plain_set(steps: list[int | None]) -> None:
    track, model = Maptrack(), set[int]()
    for step in steps:
        if step is None:
            handle = track.add(mapping())
            assert handle == min(set(range(len(model) + 1)) - model)
            model.add(handle)
        elif step in model:
            assert track.end(step, HOST)
            model.remove(step)
    assert [handle for handle, _ in track.all()] == sorted(model)
    for handle, _ in track.all():
        track.end(handle, HOST)
    assert len(track) == 0
