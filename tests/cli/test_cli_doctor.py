# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv doctor`: what is found, what it means, and the exit code."""

import mmap
import sys

import pytest
from click.testing import CliRunner, Result

from pyhv.cli.main import main
from pyhv.cpu import examine, probe, selftest
from pyhv.cpu import vmcb as v
from pyhv.cpu.trial import Trial
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.catalogue import PATCHES
from pyhv.cpu.tuning.gate import Tuning
from pyhv.errors import GuestCrash


def doctor() -> Result:
    return CliRunner().invoke(main, ["doctor"])


def row(result: Result, name: str) -> str:
    """The one row of that name, without the name."""
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"  {name}  "))
    return line[len(name) + 2 :].strip()


def test_all_is_well() -> None:
    result = doctor()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert row(result, "executable memory").startswith("yes")
    assert row(result, "build-id").startswith(f"yes     {layout.BUILD_ID}")
    assert row(result, "library").endswith("libunicorn.so.2")
    for name in (*selftest.CHECKS, "state of the processor", "guard against abort", "stops at any moment"):
        assert row(result, name).startswith("yes"), name
    assert row(result, "active").startswith("yes")
    for patch in PATCHES:
        assert patch.promise in result.stdout


@pytest.mark.promise("P-3")
def test_without_tuning_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "the library is another build (abcd)"
    monkeypatch.setattr("pyhv.cpu.tuning.gate.tuning", lambda: Tuning(PATCHES, why))
    result = doctor()
    assert result.exit_code == 0
    assert row(result, "active") == f"no      {why}"
    assert row(result, "page walks").startswith("no")


def test_what_has_a_second_way_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhv.cpu.tsc.host_tsc", lambda: None)
    monkeypatch.setattr("pyhv.cpu.guard.guard", lambda: None)
    monkeypatch.setattr("pyhv.cpu.engine.can_stop_at_any_time", lambda: False)
    monkeypatch.setattr("pyhv.cpu.clockwork.native_hook_code", lambda: None)
    result = doctor()
    assert result.exit_code == 0
    for name in ("host's TSC", "guard against abort", "stops at any moment", "block counter"):
        assert row(result, name).startswith("no"), name


def test_a_host_without_executable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is made there: the library would end the process."""

    def refuse(*_arguments: object, **_more: object) -> mmap.mmap:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mmap, "mmap", refuse)
    result = doctor()
    assert result.exit_code == 4
    assert row(result, "executable memory").startswith("FAILED")
    assert "MemoryDenyWriteExecute" in result.stderr
    assert "Emulator" not in result.stdout
    selftest.self_test.cache_clear()
    try:
        boot = CliRunner().invoke(main, ["boot", "hello"])
    finally:
        selftest.self_test.cache_clear()
    assert boot.exit_code == 4
    assert "writable and executable" in boot.stderr
    assert len(boot.stderr.splitlines()) == 1


def test_an_emulator_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyhv.cpu.engine", None)
    result = doctor()
    assert result.exit_code == 4
    assert "cannot be loaded" in row(result, "library")
    assert "pip install" in result.stderr


def test_an_emulator_that_is_laid_out_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v, "RIP", v.RIP + 1)
    probe.state_path.cache_clear()
    try:
        result = doctor()
    finally:
        probe.state_path.cache_clear()
    assert result.exit_code == 4
    assert "laid out differently" in row(result, "state of the processor")


@pytest.mark.parametrize("crash", [False, True])
def test_an_emulator_that_behaves_differently(monkeypatch: pytest.MonkeyPatch, crash: bool) -> None:
    def check(trial: Trial) -> None:
        if crash:
            raise GuestCrash("it burns")
        trial.expect("two is three", False)

    monkeypatch.setattr(selftest, "CHECKS", {**selftest.CHECKS, "flags": check})
    result = doctor()
    assert result.exit_code == 4
    assert row(result, "calls and ports").startswith("yes")
    assert ("it burns" if crash else "two is three") in row(result, "flags")
    assert "pip install" in result.stderr
    assert "Changes to the emulator" not in result.stdout


def test_a_package_that_is_not_installed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "LIBRARIES", ("unicorn", "no-such-package"))
    result = doctor()
    assert result.exit_code == 0
    assert row(result, "no-such-package").startswith("no")
