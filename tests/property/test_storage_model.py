# SPDX-License-Identifier: GPL-2.0-only
"""Random use of disks against a model that is one array of bytes; and QEMU agrees with every image that comes
of it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qemu_tools import checked, contents, qemu_img

from pyhv.storage.disk import Disk
from pyhv.storage.hostfile import HostFile
from pyhv.storage.open import open_image
from pyhv.storage.qcow2.create import create

DEEP = bool(os.environ.get("PYHV_DEEP"))
RUNS = 150 if DEEP else 4
SECTOR = 512
SIZE = 300 * SECTOR
BASE_SIZE = 200 * SECTOR

_where = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair)))
_near = st.tuples(st.integers(0, SIZE // SECTOR - 1), st.integers(1, 12)).map(
    lambda pair: (pair[0] * SECTOR, min(SIZE, (pair[0] + pair[1]) * SECTOR))
)
_range = _near | _where
Act = tuple[str, Any]
_acts = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.tuples(_range, st.integers(1, 255))),
        st.tuples(st.just("read"), _range),
        st.tuples(st.just("discard"), _range),
        st.tuples(st.just("zero"), _range),
        st.tuples(st.just("flush"), st.none()),
        st.tuples(st.just("reopen"), st.none()),
    ),
    max_size=40,
)


def perform(acts: list[Act], path: Path, form: str, model: bytearray) -> None:
    """Do it to the disk and to the model, and compare at each read and at the end."""
    disk = open_image(path, form, writable=True)
    try:
        for name, how in acts:
            if name == "reopen":
                disk.close()
                disk = open_image(path, form, writable=True)
            else:
                _act(disk, model, name, how)
        assert disk.read(0, disk.size) == model
        extents = list(disk.extents(0, disk.size))
        assert extents == sorted(extents)
        for offset, length in extents:
            model[offset : offset + length] = bytes(length)
        assert not any(model), "what is in no extent is zeros"
    finally:
        disk.close()


def _act(disk: Disk, model: bytearray, name: str, how: Any) -> None:
    if name == "write":
        (start, end), byte = how
        data = bytes((byte + n // 7) & 0xFF for n in range(end - start))
        disk.write(start, data)
        model[start:end] = data
    elif name == "read":
        start, end = how
        assert disk.read(start, end - start) == model[start:end]
    elif name == "zero":
        start, end = how
        disk.zero(start, end - start)
        model[start:end] = bytes(end - start)
    elif name == "discard":
        start, end = how
        before = bytes(model)
        disk.discard(start, end - start)
        found = disk.read(0, disk.size)
        assert found[:start] == before[:start]
        assert found[end:] == before[end:]
        assert all(new in (0, old) for new, old in zip(found[start:end], before[start:end], strict=True))
        model[:] = found
    else:
        disk.flush()


@contextmanager
def directory() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def pattern(size: int) -> bytes:
    return bytes((n * 31 + n // 512) & 0xFF for n in range(size))


@settings(max_examples=5 * RUNS, deadline=None)
@given(acts=_acts)
def test_raw(acts: list[Act]) -> None:
    with directory() as here:
        path = here / "disk"
        path.write_bytes(pattern(SIZE))
        perform(acts, path, "raw", bytearray(pattern(SIZE)))
        assert path.stat().st_size == SIZE


def ours(here: Path, bits: int) -> Path:
    path = here / "disk.qcow2"
    file = HostFile.create(path)
    create(file, SIZE, cluster_bits=bits)
    file.close()
    return path


def ours_on_raw(here: Path, bits: int) -> Path:
    (here / "base").write_bytes(pattern(BASE_SIZE))
    path = here / "disk.qcow2"
    file = HostFile.create(path)
    create(file, SIZE, cluster_bits=bits, base="base", base_format="raw")
    file.close()
    return path


def qemus(
    here: Path, bits: int, *, version: str = "1.1", refcount_bits: int = 16, base: bool = False
) -> Path:
    path = here / "disk.qcow2"
    options = f"cluster_size={1 << bits},compat={version},refcount_bits={refcount_bits}"
    backing: tuple[str, ...] = ()
    if base:
        (here / "raw").write_bytes(pattern(BASE_SIZE))
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", here / "raw", here / "base.qcow2")
        backing = ("-b", "base.qcow2", "-F", "qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, *backing, path, str(SIZE))
    return path


def compressed(here: Path, bits: int, kind: str) -> Path:
    (here / "raw").write_bytes(pattern(SIZE))
    path = here / "disk.qcow2"
    options = f"cluster_size={1 << bits},compression_type={kind}"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, here / "raw", path)
    return path


ON_BASE = bytearray(pattern(BASE_SIZE).ljust(SIZE, b"\0"))
KINDS: dict[str, tuple[Callable[[Path], Path], bytearray]] = {
    "ours-512": (lambda here: ours(here, 9), bytearray(SIZE)),
    "ours-4k": (lambda here: ours(here, 12), bytearray(SIZE)),
    "ours-64k": (lambda here: ours(here, 16), bytearray(SIZE)),
    "ours-on-raw-1k": (lambda here: ours_on_raw(here, 10), ON_BASE),
    "ours-on-raw-64k": (lambda here: ours_on_raw(here, 16), ON_BASE),
    "v2": (lambda here: qemus(here, 9, version="0.10"), bytearray(SIZE)),
    "v2-on-qcow2": (lambda here: qemus(here, 12, version="0.10", base=True), ON_BASE),
    "refcounts-of-1-bit": (lambda here: qemus(here, 9, refcount_bits=1), bytearray(SIZE)),
    "refcounts-of-4-bits-on-qcow2": (lambda here: qemus(here, 9, refcount_bits=4, base=True), ON_BASE),
    "refcounts-of-64-bits": (lambda here: qemus(here, 9, refcount_bits=64), bytearray(SIZE)),
    "zlib": (lambda here: compressed(here, 12, "zlib"), bytearray(pattern(SIZE))),
    "zstd": (lambda here: compressed(here, 16, "zstd"), bytearray(pattern(SIZE))),
}


@pytest.mark.promise("B-4")
@pytest.mark.parametrize("kind", KINDS)
def test_qcow2(kind: str) -> None:
    make, content = KINDS[kind]

    @settings(max_examples=RUNS, deadline=None)
    @given(acts=_acts)
    def run(acts: list[Act]) -> None:
        with directory() as here:
            path = make(here)
            base = {other: other.read_bytes() for other in here.iterdir() if other != path}
            model = bytearray(content)
            expected = bytearray(content)
            perform(acts, path, "qcow2", model)
            with open_image(path, "qcow2", writable=False) as disk:
                expected[:] = disk.read(0, disk.size)
            checked(path)
            assert contents(path, here) == expected
            assert base == {other: other.read_bytes() for other in base}, "a base is never written"

    run()
