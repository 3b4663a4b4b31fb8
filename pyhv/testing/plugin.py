# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin: what pytest loads (entry point `pytest11`), and so for every session on the host.

It registers the parts, which import pyhv's machinery when a test needs it and not before. `docs/testing.md`
is the tutorial.
"""

import pytest

from pyhv.testing import collection, coverage, fixtures, marker, options, recording, report


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Pytest's hook: the options, and the parts that have hooks or fixtures of their own."""
    options.add(parser)
    collection.add(parser)
    recording.add(parser)
    coverage.add(parser)
    for part in (fixtures, report, collection, recording, coverage):
        pluginmanager.register(part)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Pytest's hook."""
    for line in marker.MARKERS:
        config.addinivalue_line("markers", line)
    options.settle_seed(config)
    recordings = config.stash[recording.RECORDINGS] = recording.Recordings(config)
    seed = None if recordings.replayed is None else recordings.replayed.seed
    config.stash[options.SETTINGS] = options.Settings.of(config, seed)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Pytest's hook: the seed, if it was not left at 0."""
    seed = config.stash[options.SETTINGS].seed
    return [f"pyhv: seed {seed}"] if seed else []
