# SPDX-License-Identifier: GPL-2.0-only
"""Sessions of pytest inside tests of the plugin.

Pytest forgets the modules that such a session has imported, and the next one would import them again, beside
what others still have of the first ones. So whatever the plugin may need is imported here, before.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Final

import pytest

import pyhv.api
import pyhv.cli
import pyhv.images
import pyhv.replay
import pyhv.snapshot
import pyhv.testing

for _package in (pyhv.api, pyhv.images, pyhv.replay, pyhv.snapshot, pyhv.testing, pyhv.cli):
    for _module in iter_modules(_package.__path__):
        if _module.name not in ("go_on", "__main__"):  # programs
            import_module(f"{_package.__name__}.{_module.name}")

LIGHT: Final = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
"""Hypothesis takes as long to load as all the rest."""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """A session in this process."""
    return pytester.runpytest_inprocess(*LIGHT, *arguments)
