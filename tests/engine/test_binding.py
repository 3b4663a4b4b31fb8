# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv.cpu.binding` has the library and the numbers that unicorn's own package has."""

import subprocess
import sys

import pytest
from unicorn import unicorn_const, x86_const
from unicorn.unicorn_py3.unicorn import uclib

from pyhv.cpu import binding

THEIRS = {**vars(unicorn_const), **vars(x86_const)}
NAMES = {
    "HOOK_INTR": "UC_HOOK_INTR",
    "HOOK_INSN": "UC_HOOK_INSN",
    "HOOK_CODE": "UC_HOOK_CODE",
    "HOOK_BLOCK": "UC_HOOK_BLOCK",
    "HOOK_FETCH_PROT": "UC_HOOK_MEM_FETCH_PROT",
    "HOOK_MEM_READ": "UC_HOOK_MEM_READ",
    "HOOK_MEM_WRITE": "UC_HOOK_MEM_WRITE",
    "HOOK_INSN_INVALID": "UC_HOOK_INSN_INVALID",
    "HOOK_BLOCK_TRANSLATED": "UC_HOOK_EDGE_GENERATED",
    "MEM_WRITE": "UC_MEM_WRITE",
    "INS_CPUID": "UC_X86_INS_CPUID",
    "INS_IN": "UC_X86_INS_IN",
    "INS_OUT": "UC_X86_INS_OUT",
    "INS_RDTSC": "UC_X86_INS_RDTSC",
    "INS_RDTSCP": "UC_X86_INS_RDTSCP",
    "INS_SYSCALL": "UC_X86_INS_SYSCALL",
    "INS_SYSENTER": "UC_X86_INS_SYSENTER",
    "ARCH_X86": "UC_ARCH_X86",
    "MODE_64": "UC_MODE_64",
    "TLB_CPU": "UC_TLB_CPU",
    "CPU_SANDY_BRIDGE": "UC_CPU_X86_SANDYBRIDGE",
}
CONTROLS = {
    "CTL_CPU_MODEL": ("UC_CTL_CPU_MODEL", 1),
    "CTL_FLUSH_TB": ("UC_CTL_TB_FLUSH", 0),
    "CTL_TLB_FLUSH": ("UC_CTL_TLB_FLUSH", 0),
    "CTL_TLB_TYPE": ("UC_CTL_TLB_TYPE", 1),
    "CTL_TCG_BUFFER_SIZE": ("UC_CTL_TCG_BUFFER_SIZE", 1),
    "CTL_USE_EXITS": ("UC_CTL_UC_USE_EXITS", 1),
}
GENERAL = "RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15"


@pytest.mark.parametrize("name", NAMES)
def test_a_number_is_the_packages_own(name: str) -> None:
    assert getattr(binding, name) == THEIRS[NAMES[name]]


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_word_writes_the_packages_control(name: str) -> None:
    kind, arguments = CONTROLS[name]
    written = THEIRS["UC_CTL_IO_WRITE"]
    assert getattr(binding, name) == THEIRS[kind] | arguments << 26 | written << 30


def test_all_numbers_are_compared() -> None:
    prefixes = ("HOOK_", "MEM_", "INS_", "ARCH_", "MODE_", "TLB_", "CPU_", "CTL_")
    assert {name for name in vars(binding) if name.startswith(prefixes)} - {"HOOK_MEMORY"} == {
        *NAMES,
        *CONTROLS,
    }


def test_registers_are_the_packages_own() -> None:
    assert {name: THEIRS[f"UC_X86_REG_{name}"] for name in binding.REG} == binding.REG
    assert tuple(binding.REG[name] for name in GENERAL.split()) == binding.GENERAL_REGISTERS


def test_the_library_is_the_one_that_the_package_loads() -> None:
    assert uclib._name == binding.LIBRARY_PATH


@pytest.mark.parametrize("path", ["", "elsewhere"])
def test_a_library_of_the_users_choice_is_left_to_the_package(path: str) -> None:
    script = "from pyhv.cpu import binding; import sys; print('unicorn' in sys.modules, binding.LIBRARY_PATH)"
    environment = {"LIBUNICORN_PATH": path} if path else {}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [f"{path != ''}", uclib._name], done.stderr
