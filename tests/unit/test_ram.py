# SPDX-License-Identifier: GPL-2.0-only
"""RAM that is frozen, put back and shared: its contents against a plain model, and what it costs the host."""

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.cpu import ram as ram_module
from pyhv.cpu.layers import Image, Layer
from pyhv.cpu.ram import Ram

FRAMES = 64


def contents(ram: Ram) -> list[int]:
    """The first word of each frame; every frame holds one value throughout."""
    assert (ram.tables == ram.tables[:, :1]).all()
    return [int(value) for value in ram.tables[:, 0]]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, FRAMES - 1), st.integers(1, 1 << 60)),
        st.tuples(st.just("clear"), st.integers(0, FRAMES - 1), st.integers(1, FRAMES)),
        st.tuples(st.just("freeze"), st.just(0), st.just(0)),
        st.tuples(st.just("revert"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("copy"), st.integers(0, 7), st.just(0)),
    ),
    max_size=40,
)


@pytest.mark.promise("S-2")
@given(steps, st.sampled_from([3, 8192]))
@settings(max_examples=150)
def test_an_image_is_what_was_there(actions: list[tuple[str, int, int]], views: int) -> None:
    ram, model = Ram(FRAMES), [0] * FRAMES
    kept: list[tuple[Image, list[int]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ram_module, "_MOST_VIEWS", views)
        for action, number, value in actions:
            if action == "write":
                ram.writable.tables[number] = model[number] = value
            elif action == "clear":
                count = min(value, FRAMES - number)
                ram.clear_run(number, count)
                model[number : number + count] = [0] * count
            elif action == "freeze":
                kept.append((ram.freeze(), list(model)))
            elif kept and action == "revert":
                image, then = kept[number % len(kept)]
                changed = set(ram.revert(image).tolist())
                assert {mfn for mfn in range(FRAMES) if model[mfn] != then[mfn]} <= changed
                model = list(then)
            elif kept:
                image, then = kept[number % len(kept)]
                ram, model = Ram.of(image), list(then)
            assert contents(ram) == model
        for image, then in kept:
            assert contents(Ram.of(image)) == then
            words = np.frombuffer(b"".join(image.read(0, FRAMES)), dtype=np.uint64).reshape(FRAMES, 512)
            assert words[:, 0].tolist() == then
            assert {mfn for mfn in range(FRAMES) if then[mfn]} <= set(image.existing().tolist())


def test_the_address_and_the_views_stay() -> None:
    ram = Ram(FRAMES)
    address, raw = ram.address, ram.raw
    ram.writable.q[512 * 5] = 1
    image = ram.freeze()
    ram.writable.raw[5 << 12] = 2
    assert ram.revert(image).tolist() == [5]
    assert (ram.address, raw[5 << 12], ram.d[1024 * 5]) == (address, 1, 1)


def test_what_was_written_since() -> None:
    ram = Ram(FRAMES)
    assert ram.written().size == FRAMES
    ram.freeze()
    assert not ram.written().size
    for mfn in (1, 2, 9, 40):
        ram.writable.q[mfn << 9] = 1
    assert ram.q[20 << 9] == 0  # reading is not writing
    assert ram.written().tolist() == [1, 2, 9, 40]
    ram.freeze()
    assert not ram.written().size


@pytest.mark.promise("S-2")
def test_copies_know_nothing_of_each_other() -> None:
    ram = Ram(FRAMES)
    ram.writable.tables[:] = 7
    image = ram.freeze()
    one, other = Ram.of(image), Ram.of(image)
    one.writable.tables[3] = 1
    other.clear_run(0, FRAMES)
    ram.writable.tables[4] = 2
    assert contents(one) == [7, 7, 7, 1] + [7] * (FRAMES - 4)
    assert contents(other) == [0] * FRAMES
    assert contents(ram) == [7, 7, 7, 7, 2] + [7] * (FRAMES - 5)


def test_files_in_memory_are_closed() -> None:
    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = count()
    ram = Ram(FRAMES)
    for value in range(1, 50):
        ram.writable.tables[value % 5] = value
        image = ram.freeze()
    assert count() <= before + 6  # no layer without a frame is kept
    ram.writable.tables[9] = 1
    ram.revert(image)
    del ram, image
    assert count() == before


def test_a_frame_that_nobody_wrote_takes_no_room(tmp_path: Path) -> None:
    ram = Ram(1 << 18)  # 1 GiB
    ram.writable.tables[17] = 1
    image = ram.freeze()
    assert image.existing().tolist() == [17]
    assert image.layers[0].exist.sum() == 1
    assert os.fstat(image.layers[0].fd).st_blocks <= 16


def test_reading_a_layer_back() -> None:
    layer = Layer(8)
    layer.store(3, memoryview(bytes([1]) * 4096 + bytes([2]) * 4096))
    assert np.flatnonzero(layer.exist).tolist() == [3, 4]
    image = Image((layer,), np.zeros(8, dtype=np.int32))
    assert [piece[:1] for piece in image.read(4, 1)] == [b"\2"]


# -- what the hypervisor has written -----------------------------------------------------------------------


def test_what_was_stored_is_dirty_until_it_is_taken() -> None:
    ram = Ram(FRAMES)
    assert ram.take_dirty().tolist() == []
    ram.store_u64((9 << 12) + 4088, 1)
    ram.store_u32((3 << 12) + 4, 0xFFFF_FFFF)
    ram.store_row(5, 7)
    assert ram.take_dirty().tolist() == [3, 5, 9]
    assert (ram.q[9 << 9 | 511], ram.q[3 << 9], ram.tables[5].tolist()) == (1, 0xFFFF_FFFF << 32, [7] * 512)
    assert ram.take_dirty().tolist() == []


@pytest.mark.parametrize(("dtype", "per_frame"), [(np.uint64, 512), (np.uint32, 1024)])
def test_words_of_an_array_dirty_the_frames_that_they_are_in(
    dtype: type[np.uint64] | type[np.uint32], per_frame: int
) -> None:
    ram = Ram(FRAMES)
    values: Any = np.array([1, 2, 3], dtype=dtype)
    ram.store_words(4, np.array([0, per_frame - 1, 3 * per_frame]), values, dtype)
    assert ram.take_dirty().tolist() == [4, 7]
    words = ram.tables.reshape(-1).view(dtype)[4 * per_frame :]
    assert [int(words[index]) for index in (0, per_frame - 1, 3 * per_frame)] == [1, 2, 3]
    assert np.count_nonzero(ram.tables) == 3 if dtype is np.uint64 else np.count_nonzero(words) == 3


def test_what_is_given_back_or_put_back_is_dirty() -> None:
    ram = Ram(FRAMES)
    ram.store_row(6, 1)
    image = ram.freeze()
    ram.store_row(7, 1)
    ram.take_dirty()
    ram.clear_run(2, 3)
    ram.clear(np.array([11, 12, 20]))
    assert ram.take_dirty().tolist() == [2, 3, 4, 11, 12, 20]
    ram.revert(image)
    assert 7 in ram.take_dirty()
    assert not ram.tables[7].any()


def test_the_open_views_are_for_reading() -> None:
    ram = Ram(FRAMES)
    for view in (ram.raw, ram.q, ram.d, ram.frame(3), ram.tables.data):
        assert view.readonly
    with pytest.raises(ValueError, match="read-only"):
        ram.tables[0] = 1
