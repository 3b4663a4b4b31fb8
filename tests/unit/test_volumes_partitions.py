# SPDX-License-Identifier: GPL-2.0-only
"""Partition tables: sfdisk's are read as sfdisk reads them, and damaged ones end in a sentence."""

import json
from pathlib import Path

import pytest
from disk_maker import MIB, blank, run, window
from hypothesis import given
from hypothesis import strategies as st

from pyhv.errors import VolumeError
from pyhv.volumes.partitions import MAX_LOGICAL, read_table

MBR = "label: dos\nlabel-id: 0x11223344\n,8M,L,*\n,4M,S\n,,E\n,6M,L\n,5M,L\n"
GPT = "label: gpt\n,1M,21686148-6449-6E6F-744E-656564454649,\n,20M,L,\nname=data,type=L\n"


def disk(path: Path, script: str, size: int = 64 * MIB) -> Path:
    run("sfdisk", "-q", blank(path, size), text=script)
    return path


def as_sfdisk_reads(path: Path) -> list[tuple[int, int, int]]:
    table = json.loads(run("sfdisk", "--json", path))["partitiontable"]
    return [
        (int(one["node"].removeprefix(str(path))), one["start"] * 512, one["size"] * 512)
        for one in table["partitions"]
    ]


@pytest.mark.parametrize("script", [MBR, GPT], ids=["MBR", "GPT"])
def test_as_sfdisk_reads_it(tmp_path: Path, script: str) -> None:
    path = disk(tmp_path / "disk", script)
    table = read_table(window(path))
    assert table is not None
    assert not table.remarks
    assert [(one.number, one.start, one.size) for one in table.partitions] == as_sfdisk_reads(path)


def test_mbr_in_words(tmp_path: Path) -> None:
    table = read_table(window(disk(tmp_path / "disk", MBR)))
    assert table is not None
    assert table.kind == "MBR"
    assert [one.kind for one in table.partitions] == ["Linux", "Linux swap", "extended", "Linux", "Linux"]
    assert [one.bootable for one in table.partitions] == [True, False, False, False, False]
    assert table.partitions[0].uuid == "11223344-01"
    assert [one.container for one in table.partitions] == [False, False, True, False, False]


def test_gpt_in_words(tmp_path: Path) -> None:
    table = read_table(window(disk(tmp_path / "disk", GPT)))
    assert table is not None
    assert table.kind == "GPT"
    assert [one.kind for one in table.partitions] == ["BIOS boot", "Linux", "Linux"]
    assert table.partitions[2].name == "data"
    assert len(table.partitions[0].uuid) == 36


@pytest.mark.parametrize("at", [512 + 40, 1024 + 32], ids=["header", "entries"])
def test_a_damaged_gpt_is_replaced_by_its_backup(tmp_path: Path, at: int) -> None:
    path = disk(tmp_path / "disk", GPT)
    data = bytearray(path.read_bytes())
    whole = read_table(window(data))
    data[at] ^= 1
    table = read_table(window(data))
    assert table is not None
    assert whole is not None
    assert table.partitions == whole.partitions
    assert [remark.partition(":")[0] for remark in table.remarks] == ["the primary table is not valid"]
    data[-512 + 40] ^= 1
    with pytest.raises(VolumeError, match=r"primary table is not valid.* and the backup table is not valid"):
        read_table(window(data))


def test_no_table() -> None:
    assert read_table(window(bytes(MIB))) is None
    assert read_table(window(b"")) is None
    assert read_table(window(bytes(510) + b"\x55\xaa")) is None


def entry(kind: int, start: int, size: int, flag: int = 0) -> bytes:
    return bytes([flag, 0, 0, 0, kind, 0, 0, 0]) + start.to_bytes(4, "little") + size.to_bytes(4, "little")


def table_sector(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def test_a_chain_that_comes_back_ends() -> None:
    data = table_sector(entry(5, 1, 9)) + table_sector(entry(0x83, 1, 1), entry(5, 0, 9)) + bytes(8 * 512)
    table = read_table(window(data))
    assert table is not None
    assert [one.number for one in table.partitions] == [1, 5]
    assert table.remarks == ("the chain of logical partitions comes back to 0x200",)


def test_a_chain_without_end_ends() -> None:
    links = [table_sector(entry(0x83, 0, 0), entry(5, number, 9)) for number in range(1, MAX_LOGICAL + 9)]
    table = read_table(window(table_sector(entry(5, 1, 9)) + b"".join(links)))
    assert table is not None
    assert table.remarks[0].startswith(f"more than {MAX_LOGICAL} logical partitions")


def test_partitions_that_cannot_be_right_are_told() -> None:
    data = table_sector(entry(0x83, 1, 5), entry(0x83, 3, 1 << 31)) + bytes(10 * 512)
    table = read_table(window(data))
    assert table is not None
    assert table.remarks == (
        "partition 2 reaches behind the end of the disk",
        "partitions 1 and 2 overlap",
    )


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=4, max_size=4), st.binary(max_size=2048))
def test_any_table_ends_in_partitions_or_a_sentence(entries: list[bytes], rest: bytes) -> None:
    entries[0] = bytes([0x80]) + entries[0][1:]
    try:
        table = read_table(window(table_sector(*entries) + rest))
    except VolumeError:
        return
    assert table is None or len(table.partitions) <= 4 + MAX_LOGICAL
