# SPDX-License-Identifier: GPL-2.0-only
"""Which pyhv this is."""

from typing import Final

VERSION: Final = "0.1.0"
"""As `pyproject.toml` has it."""
