# SPDX-License-Identifier: GPL-2.0-only
"""Keystone's instances read decimal numbers as decimal, whatever memory they were made in."""

import ast
from pathlib import Path
from typing import ClassVar, Final

import keystone
import pytest

import pyhv
from pyhv.cpu.assembling import new_assembler
from pyhv.errors import EngineError

KS: Final = keystone.Ks
PACKAGE = Path(pyhv.__file__).parent


class Hexadecimal:
    """An instance whose radix is 16, as Keystone itself makes one when its syntax is set."""

    bad: ClassVar = 3
    made: ClassVar = 0

    def __init__(self, architecture: int, mode: int) -> None:
        type(self).made += 1
        self.real = KS(architecture, mode)
        if type(self).made <= self.bad:
            self.real.syntax = keystone.KS_OPT_SYNTAX_INTEL
        self.asm = self.real.asm


def test_what_is_to_be_avoided() -> None:
    assert Hexadecimal(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm("mov eax, 10")[0][1] == 16


def test_an_instance_that_reads_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    Hexadecimal.made = 0
    monkeypatch.setattr("pyhv.cpu.assembling.keystone.Ks", Hexadecimal)
    assert new_assembler().asm("mov eax, 10")[0] == [0xB8, 10, 0, 0, 0]
    assert Hexadecimal.made == Hexadecimal.bad + 1


def test_no_instance_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    Hexadecimal.made = 0
    monkeypatch.setattr(Hexadecimal, "bad", 1000)
    monkeypatch.setattr("pyhv.cpu.assembling.keystone.Ks", Hexadecimal)
    with pytest.raises(EngineError, match="reads decimal numbers as others"):
        new_assembler()


def test_nobody_makes_an_instance_but_here() -> None:
    makers = [
        path.name
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "Ks" and ast.unparse(node.value) == "keystone"
        if path.name != "assembling.py"
    ]
    assert makers == []
