# SPDX-License-Identifier: GPL-2.0-only
"""Unpacking: every compression that Linux uses, with and without a bzImage around it, and what is refused."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import pytest
import zstandard
from elf_maker import bzimage, kernel

from pyhv.errors import ImageError
from pyhv.loader import decompress as module
from pyhv.loader.bzimage import unpack

ELF = kernel() + bytes(9 << 20)  # more than one step and more than one LZ4 block


def lz4_legacy(data: bytes) -> bytes:
    out = struct.pack("<I", 0x184C2102)
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "lz4": lz4_legacy,
    "zstd": zstandard.compress,
}
PACKED = {name: compress(ELF) for name, compress in COMPRESS.items()}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("trailer", [b"", struct.pack("<I", len(ELF))])
def test_payloads(compression: str, trailer: bytes) -> None:
    elf, kind = unpack(bzimage(PACKED[compression], trailer=trailer), "k")
    assert kind == f"bzImage ({compression})"
    assert elf == ELF


@pytest.mark.parametrize("compression", COMPRESS)
def test_plain_compressed_files(compression: str) -> None:
    assert unpack(PACKED[compression], "k") == (ELF, f"ELF ({compression})")


def test_uncompressed() -> None:
    elf = kernel()
    assert unpack(elf, "k") == (elf, "ELF")
    assert unpack(bzimage(elf, trailer=b""), "k") == (elf, "bzImage (uncompressed)")


@pytest.mark.parametrize("compression", COMPRESS)
def test_compressed_bzimages(compression: str) -> None:
    inner = bzimage(PACKED["xz"], trailer=struct.pack("<I", len(ELF)))
    assert unpack(COMPRESS[compression](inner), "k") == (ELF, f"bzImage (xz) in {compression}")


@pytest.mark.parametrize("compression", ["gzip", "xz", "bzip2", "lz4", "zstd"])
@pytest.mark.parametrize("trailer", [b"", struct.pack("<I", len(ELF)), b"\x1f\x8b\x08\0"])
def test_several_streams(compression: str, trailer: bytes) -> None:
    cuts = (ELF[:1000], ELF[1000:1001], b"", ELF[1001:])
    whole = b"".join(COMPRESS[compression](part) for part in cuts if part or compression != "lz4")
    assert unpack(whole, "k").elf == ELF
    assert unpack(bzimage(whole, trailer=trailer), "k").elf == ELF
    with pytest.raises(ImageError, match=r"ends too early|damaged"):
        unpack(whole[: len(whole) - len(COMPRESS[compression](cuts[-1])) // 2], "k")


def test_frames_of_zstd_that_are_to_be_skipped() -> None:
    skipped = struct.pack("<II", 0x184D2A57, 5) + b"hello"
    one, other = zstandard.compress(ELF[:5000]), zstandard.compress(ELF[5000:])
    assert unpack(skipped + one + skipped + skipped + other + skipped, "k").elf == ELF


def test_long_windows_of_zstd() -> None:
    # What `zstd --long=31` writes, whose window is larger than all that there is.
    options = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    packed = packer.compress(ELF) + packer.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << 31
    assert unpack(packed, "k").elf == ELF


@pytest.mark.parametrize("compression", COMPRESS)
def test_truncated_streams(compression: str) -> None:
    whole = PACKED[compression]
    for size in (len(whole) // 2, len(whole) - 9):
        with pytest.raises(ImageError, match=r"ends too early|damaged"):
            unpack(whole[:size], "k")


@pytest.mark.promise("L-24")
@pytest.mark.parametrize("compression", COMPRESS)
def test_bombs_are_stopped(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNPACKED", 2 << 20)
    with pytest.raises(ImageError, match="more than 2097152 bytes"):
        unpack(PACKED[compression], "k")


@pytest.mark.promise("L-24")
def test_steps_are_bounded() -> None:
    # A bomb must be stoppable: no single step of a decoder may return more than a bounded piece.
    bomb = bytes(20 << 20)
    for compression in ("gzip", "xz", "lzma", "bzip2"):
        pieces = list(module._DECODERS[compression](COMPRESS[compression](bomb)))
        assert sum(map(len, pieces)) == len(bomb)
        assert max(map(len, pieces)) <= 1 << 20


@pytest.mark.promise("L-24")
def test_streams_are_counted() -> None:
    # Each costs a moment, however little it holds.
    with pytest.raises(ImageError, match="more than 65536 gzip streams"):
        unpack(gzip.compress(b"") * 70000, "k")


def test_content_must_be_an_elf_file() -> None:
    with pytest.raises(ImageError, match="not an ELF file"):
        unpack(gzip.compress(b"hello"), "k")


def test_damaged_bzimages() -> None:
    good = bzimage(PACKED["xz"])
    with pytest.raises(ImageError, match="truncated"):
        unpack(good[:-5], "k")
    with pytest.raises(ImageError, match="setup header"):
        unpack(good[:0x240], "k")
    with pytest.raises(ImageError, match=r"protocol 2\.07"):
        unpack(bzimage(PACKED["xz"], version=0x207), "k")
    with pytest.raises(ImageError, match="empty payload"):
        unpack(bzimage(b"", trailer=b""), "k")
    unmarked = good[:0x1FE] + bytes(2) + good[0x200:]
    assert unpack(unmarked, "k").elf == ELF
    with pytest.raises(ImageError, match="compressed with LZO"):
        unpack(bzimage(b"\x89LZO\0\r\n\x1a\n"), "k")
