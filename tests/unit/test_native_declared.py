# SPDX-License-Identifier: GPL-2.0-only
"""A .pxd that declares what its module does not have is refused, and so is a hot module without one."""

from pathlib import Path

import pytest

from native import generate
from native.declared import check
from native.problem import BuildProblem

SOURCE = """
class Cpu:
    __slots__ = ("d", "q")
    width: int
    def __init__(self):
        self.q = self.flags = 0
    def run(self, length):
        rip = self.q
        return rip + length
"""
GOOD = """
from libc.stdint cimport uint64_t
cdef class Cpu(Base):
    cdef public uint64_t q, flags  # words
    cdef Words64 d
    cdef object width
    cdef uint8_t *flags
    @cython.locals(rip=uint64_t,
                   length=uint64_t)
    cpdef uint64_t run(self, uint64_t length) except? 1

cdef inline void _entered(void *engine):
    hook.enter()
"""


def test_what_is_there_may_be_declared() -> None:
    check(SOURCE, GOOD, "cpu.pxd")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("class Cpu", "class Gpu", "declares a class Gpu"),
        ("q, flags", "q, flogs", r"declares Cpu\.flogs"),
        ("Words64 d", "Words64 _d", r"declares Cpu\._d"),
        ("*flags", "*flag", r"declares Cpu\.flag,"),
        ("run(", "ran(", r"declares Cpu\.ran"),
        ("locals(rip", "locals(rop", r"Cpu\.run, with a local rop"),
        ("cdef object width", "width: object", "not understood: width: object"),
    ],
)
def test_what_is_not_there_is_refused(old: str, new: str, why: str) -> None:
    assert old in GOOD
    with pytest.raises(BuildProblem, match=why):
        check(SOURCE, GOOD.replace(old, new), "cpu.pxd")


def test_a_hot_module_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "HOT", ("pyhv.terrors",))
    with pytest.raises(BuildProblem, match=r"pyhv\.terrors is in HOT, but there is no .*terrors\.py"):
        generate.generate(tmp_path)


def test_what_cython_refuses_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "HOT", ("pyhv.domain.fields",))
    monkeypatch.setattr(generate, "burnt", lambda *_: "import cython\ndef f(:\n")
    with pytest.raises(
        BuildProblem, match=r"Cython refuses pyhv\.domain\.fields \(pyhv/domain/fields\.py:2:6"
    ) as caught:
        generate.generate(tmp_path)
    log = Path(str(caught.value).rpartition(" ")[2])
    assert "Expected" in log.read_text(encoding="utf-8")
