# SPDX-License-Identifier: GPL-2.0-only
"""Trace and digest: observers of exits."""

import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyhv.machine  # noqa: F401  (fills the hypercall table)
from pyhv.cpu.exits import ExitKind, ExitRecord
from pyhv.observe.digest import Digest
from pyhv.observe.trace import Trace, detail_name, hypercall_name

U64 = st.integers(0, 2**64 - 1)
RECORDS = st.builds(
    ExitRecord,
    time=st.integers(0, 2**63),
    domid=st.integers(1, 0x7FEF),
    vcpu=st.integers(0, 31),
    kind=st.sampled_from(ExitKind),
    detail=st.integers(0, 2**64 - 1),
    registers=st.tuples(*[U64] * 18),
)


def record(
    kind: ExitKind = ExitKind.HYPERCALL, detail: int = 17, rip: int = 0x100400, time: int = 5
) -> ExitRecord:
    return ExitRecord(time, 1, 0, kind, detail, (*range(16), rip, 0x202))


def test_a_trace_line() -> None:
    written: list[bytes] = []
    trace = Trace(written.append)
    trace.exit(record())
    assert written == []
    trace.flush()
    trace.flush()
    assert b"".join(written) == (
        b'{"time":5,"domid":1,"vcpu":0,"kind":"hypercall","detail":17,"name":"xen_version","rip":"0x100400"}\n'
    )
    assert trace.count == 1


@given(st.lists(RECORDS, max_size=20))
def test_each_line_is_json_and_tells_the_record(records: list[ExitRecord]) -> None:
    written: list[bytes] = []
    trace = Trace(written.append)
    for each in records:
        trace.exit(each)
    trace.flush()
    lines = [json.loads(line) for line in b"".join(written).splitlines()]
    assert len(lines) == len(records) == trace.count
    for line, each in zip(lines, records, strict=True):
        assert (line["time"], line["domid"], line["vcpu"]) == (each.time, each.domid, each.vcpu)
        assert line["kind"] == each.kind.name.lower()
        assert line["detail"] == each.detail
        assert int(line["rip"], 16) == each.registers[16]


def test_a_long_trace_is_written_as_it_grows() -> None:
    written: list[bytes] = []
    trace = Trace(written.append)
    for detail in range(10_000):
        trace.exit(record(ExitKind.SYSTEM_CALL, detail))
    assert len(written) > 5
    assert len(trace._names) <= 4096  # whatever numbers a guest makes up


@pytest.mark.parametrize(
    ("kind", "detail", "name"),
    [
        (ExitKind.HYPERCALL, 1, "mmu_update"),
        (ExitKind.HYPERCALL, 63, "hypercall 63"),
        (ExitKind.HYPERCALL, 2**32 - 1, "hypercall 4294967295"),
        (ExitKind.PAGE_FAULT, 14, "#PF"),
        (ExitKind.EXCEPTION, 0, "#DE"),
        (ExitKind.EXCEPTION, 99, "vector 99"),
        (ExitKind.SOFTWARE_INTERRUPT, 0x80, "int 0x80"),
        (ExitKind.PORT_IO, 0x70, "port 0x70"),
        (ExitKind.SYSTEM_CALL, 39, "system call 39"),
        (ExitKind.BUDGET, 0, ""),
    ],
)
def test_details_have_names(kind: ExitKind, detail: int, name: str) -> None:
    assert detail_name(kind, detail) == name


def test_a_hypercall_nobody_has() -> None:
    assert hypercall_name(-1) == "hypercall -1"


def test_the_digest_is_the_chain_its_documentation_says() -> None:
    digest = Digest()
    assert digest.summary() == "0" * 64 + " 0\n"
    state = bytes(32)
    for number in range(3):
        each = record(detail=number)
        digest.exit(each)
        packed = struct.pack("<QHHIQ18Q", 5, 1, 0, ExitKind.HYPERCALL, number, *each.registers)
        state = hashlib.blake2b(state + packed, digest_size=32).digest()
    assert digest.summary() == f"{state.hex()} 3\n"


@pytest.mark.promise("T-1")
@given(st.lists(RECORDS, min_size=1, max_size=8), st.data())
def test_every_field_of_every_exit_counts(records: list[ExitRecord], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(records) - 1))
    changed = data.draw(RECORDS)
    one, same, other = Digest(), Digest(), Digest()
    for number, each in enumerate(records):
        one.exit(each)
        same.exit(each)
        other.exit(changed if number == at else each)
    assert one.hexdigest() == same.hexdigest()
    assert (one.hexdigest() == other.hexdigest()) == (changed == records[at])
