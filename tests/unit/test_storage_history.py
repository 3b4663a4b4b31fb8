# SPDX-License-Identifier: GPL-2.0-only
"""A disk that remembers moments, against a model that keeps a whole copy of each."""

import errno
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.storage.disk import DiskError
from pyhv.storage.history import GRAIN, Remembering
from pyhv.storage.open import open_image

SIZE = 9 * GRAIN + 1536
RUNS = 400 if os.environ.get("PYHV_DEEP") else 40


def remembering(path: Path, **how: Any) -> Remembering:
    return Remembering(open_image(path, "raw", writable=True), **how)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(n // GRAIN + 1 for n in range(SIZE)))
    return path


_range = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair)))
_acts = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _range),
        st.tuples(st.just("zero"), _range),
        st.tuples(st.just("moment"), st.none()),
        st.tuples(st.just("revert"), st.integers(0, 50)),
        st.tuples(st.just("view"), st.integers(0, 50)),
        st.tuples(st.just("write a view"), st.tuples(st.integers(0, 50), _range)),
        st.tuples(st.just("close a view"), st.integers(0, 50)),
        st.tuples(st.just("forget"), st.integers(0, 50)),
        st.tuples(st.just("drop"), st.integers(0, 50)),
    ),
    max_size=30,
)


@pytest.mark.promise("B-7")
@settings(max_examples=RUNS, deadline=None)
@given(acts=_acts)
def test_any_use_of_moments(acts: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "disk"
        model = bytearray(n // GRAIN + 1 for n in range(SIZE))
        path.write_bytes(model)
        disk = remembering(path)
        moments: dict[int, bytes] = {}
        views: list[tuple[Any, bytearray]] = []
        for step, (act, how) in enumerate(acts):
            known = list(moments)
            if act == "write":
                start, end = how
                data = bytes([step + 100]) * (end - start)
                disk.write(start, data)
                model[start:end] = data
            elif act == "zero":
                start, end = how
                disk.zero(start, end - start)
                model[start:end] = bytes(end - start)
            elif act == "moment":
                moments[disk.moment()] = bytes(model)
            elif act == "revert" and known:
                moment = known[how % len(known)]
                disk.revert(moment)
                model[:] = moments[moment]
            elif act == "view" and known:
                moment = known[how % len(known)]
                views.append((disk.view(moment), bytearray(moments[moment])))
            elif act == "write a view" and views:
                (view, held), (start, end) = views[how[0] % len(views)], how[1]
                view.write(start, bytes([step + 50]) * (end - start))
                held[start:end] = bytes([step + 50]) * (end - start)
            elif act == "close a view" and views:
                views.pop(how % len(views))[0].close()
            elif act == "forget" and known:
                before = known[how % len(known)]
                disk.forget(before)
                moments = {moment: held for moment, held in moments.items() if moment >= before}
            elif act == "drop" and known:
                dropped = known[how % len(known)]
                disk.drop(dropped)
                del moments[dropped]
            assert disk.moments() == list(moments)
            for view, held in views:
                assert view.read(0, SIZE) == held
        assert disk.read(0, SIZE) == model
        for moment in sorted(moments, key=lambda moment: moment * 7 % 5):
            disk.revert(moment)
            assert disk.read(0, SIZE) == moments[moment]
        disk.close()
        for view, held in views:  # which go on when the disk itself is closed
            assert view.read(0, SIZE) == held
            view.close()


def test_nothing_is_copied_before_the_first_moment_and_once_after_it(image: Path) -> None:
    with remembering(image) as disk:
        disk.write(0, b"x" * SIZE)
        assert disk.copied == 0
        disk.moment()
        disk.write(5, b"y")
        disk.write(6, b"y" * 100)
        assert disk.copied == GRAIN
        disk.moment()
        disk.write(5, b"y")
        assert disk.copied == 2 * GRAIN
        disk.forget(1)
        assert disk.copied == GRAIN
        disk.forget(2)
        assert disk.copied == 0


def test_zeros_take_no_room_and_nothing_is_discarded_while_moments_are_remembered(image: Path) -> None:
    with remembering(image) as disk:
        disk.zero(0, 4 * GRAIN)
        moment = disk.moment()
        before = disk.read(0, SIZE)
        disk.write(0, b"x" * 5 * GRAIN)
        assert disk.copied == GRAIN
        disk.discard(0, SIZE)
        assert disk.read(0, GRAIN) == b"x" * GRAIN
        disk.revert(moment)
        assert disk.read(0, SIZE) == before
        disk.forget(moment + 1)
        disk.discard(0, SIZE)
        assert disk.read(0, SIZE) in (before, bytes(SIZE // 4096 * 4096) + before[SIZE // 4096 * 4096 :])


def test_views_are_true_while_the_disk_is_being_written(image: Path) -> None:
    """Whoever reads what is not copied yet may be overtaken by who copies and writes it."""
    before = image.read_bytes()
    with remembering(image) as disk:
        view = disk.view(disk.moment())
        done = threading.Event()
        wrong: list[int] = []

        def look() -> None:
            while not done.is_set():
                for at in range(0, SIZE - 512, 3 * 1024):
                    if view.read(at, 512) != before[at : at + 512]:
                        wrong.append(at)

        readers = [threading.Thread(target=look) for _ in range(3)]
        for reader in readers:
            reader.start()
        for at in range(0, SIZE - 512, 512):
            disk.write(at, bytes([at % 251]) * 512)
        done.set()
        for reader in readers:
            reader.join()
        assert wrong == []
        assert view.read(0, SIZE) == before
        view.close()


@pytest.mark.promise("B-7")
def test_copies_are_bounded_by_forgetting_the_oldest_moments(image: Path) -> None:
    with remembering(image, most=4 * GRAIN) as disk:
        first = disk.moment()
        disk.write(0, b"a" * GRAIN)
        view = disk.view(first)
        second = disk.moment()
        disk.write(GRAIN, b"b" * 3 * GRAIN)
        assert disk.moments() == [first, second]
        disk.write(4 * GRAIN, b"c")
        assert disk.moments() == [second]
        assert disk.copied == 4 * GRAIN
        with pytest.raises(DiskError, match="moment 0 is not remembered any more") as caught:
            disk.revert(first)
        assert caught.value.errno == errno.ESTALE
        with pytest.raises(DiskError, match="not remembered any more"):
            view.read(0, 1)
        view.close()
        disk.revert(second)
        assert disk.read(0, SIZE) == b"a" * GRAIN + image.read_bytes()[GRAIN:]
        disk.write(0, b"d" * SIZE)  # more than can be copied: the guest's write counts
        assert disk.moments() == []
        assert disk.read(0, SIZE) == b"d" * SIZE
        assert disk.copied <= 4 * GRAIN


def test_moments_in_between_that_are_dropped_cost_nothing(image: Path) -> None:
    with remembering(image) as disk:
        first = disk.moment()
        before = image.read_bytes()
        for number in range(50):
            moment = disk.moment()
            disk.write(number % 3 * GRAIN, bytes([number + 1]) * 100)
            disk.drop(moment)
        assert disk.moments() == [first]
        assert disk.copied == 3 * GRAIN
        disk.revert(first)
        assert image.read_bytes() == before


def test_a_moment_is_dropped_and_a_view_closed_in_the_middle_of_anything(image: Path) -> None:
    """As by whoever collects garbage, which may be the very thread that has the lock."""
    disk = remembering(image)
    moment, other = disk.moment(), disk.moment()
    view = disk.view(other)
    disk.write(0, b"x")
    with disk._lock:
        disk.drop(moment)
        view.close()
        disk.drop(other)
    assert disk.copied == GRAIN
    assert disk.moments() == []
    assert disk.copied == 0
    disk.close()
    open_image(image, "raw", writable=True).close()


def test_a_moment_that_never_was(image: Path) -> None:
    with remembering(image) as disk:
        for act in (disk.revert, disk.view):
            with pytest.raises(DiskError, match="or never was"):
                act(0)


def test_a_view_leaves_the_image_alone_and_forgotten_moments_stay_for_it(image: Path) -> None:
    before = image.read_bytes()
    disk = remembering(image)
    view = disk.view(disk.moment())
    view.write(3, b"mine")
    disk.write(100, b"the disk's")
    disk.forget(1)
    assert disk.moments() == []
    with pytest.raises(DiskError, match="not remembered"):
        disk.view(0)
    assert view.read(0, 200) == before[:3] + b"mine" + before[7:200]
    second = Remembering(view)  # a copy of a copy
    copy = second.view(second.moment())
    copy.write(0, b"c")
    assert second.read(0, 8) == before[:3] + b"mine" + before[7:8]
    assert copy.read(0, 8) == b"c" + before[1:3] + b"mine" + before[7:8]
    copy.close()
    second.close()
    assert disk.copied == 0, "its last view has gone"
    disk.close()
    assert image.read_bytes() == before[:100] + b"the disk's" + before[110:]


@pytest.mark.promise("B-7")
def test_no_file_is_left_and_the_image_is_free_again(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    disk = remembering(image)
    view = disk.view(disk.moment())
    disk.write(0, b"x")
    view.write(0, b"y")
    assert list(scratch.iterdir()) == [], "nor while it is in use"
    disk.close()
    with pytest.raises(DiskError, match="being written"):
        open_image(image, "raw", writable=True)
    view.close()
    open_image(image, "raw", writable=True).close()


@pytest.mark.parametrize(
    ("number", "fails"), [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EIO, True)]
)
def test_a_host_without_room_for_copies_costs_moments_and_no_write(
    image: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    genuine = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if descriptor != disk.disk.file.descriptor:  # type: ignore[attr-defined]
            raise OSError(number, os.strerror(number))
        return genuine(descriptor, data, offset)

    with remembering(image) as disk:
        before = image.read_bytes()
        moment = disk.moment()
        disk.write(GRAIN, b"y")
        monkeypatch.setattr(os, "pwrite", full)
        if fails:
            with pytest.raises(DiskError, match=os.strerror(number)):
                disk.write(0, b"x")
            monkeypatch.undo()
            disk.write(0, b"x")
            disk.revert(moment)
            assert image.read_bytes() == before
        else:
            disk.write(0, b"x")
            assert image.read_bytes()[:1] == b"x"
            assert disk.moments() == []
            with pytest.raises(DiskError, match="not remembered any more"):
                disk.revert(moment)
            monkeypatch.undo()
            again = disk.moment()
            disk.write(0, b"z")
            disk.revert(again)
            assert image.read_bytes()[:1] == b"x"
