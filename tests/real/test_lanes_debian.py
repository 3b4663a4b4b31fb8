# SPDX-License-Identifier: GPL-2.0-only
"""Debian's Linux in both lanes: the same run, exit for exit."""

from pathlib import Path

import pytest
from lanes import pyhv, require_native

from pyhv.lane import NATIVE, PLAIN

pytestmark = pytest.mark.debian

EXITS = 50_000
"""A boot has more."""


@pytest.mark.promise("P-6")
def test_debian_boots_the_same_in_both_lanes(tmp_path: Path) -> None:
    """From the first instruction to init and the power-off, with all registers at each exit."""
    require_native()
    found = []
    for lane in (NATIVE, PLAIN):
        path = tmp_path / lane
        said = pyhv(
            "boot", "debian", "--append", "quiet w=boot", "--virtual-time", "--seed", "1",
            "--digest", str(path), within=lane,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        assert "PYHV-INIT-OK" in said.stdout
        found.append((said.stdout, path.read_text(encoding="utf-8")))
    assert int(found[0][1].split()[1]) > EXITS
    assert found[0] == found[1]
