# SPDX-License-Identifier: GPL-2.0-only
"""Where the one build of the library that we know keeps things, read from its machine code.

The names are the structures' and fields' own. What can be recognized by its value in a running engine is
checked there (`block.py`); the rest stands under the proofs of the patches.
"""

from typing import Final

BUILD_ID: Final = "44285d3e80527122e9e361928189385906ec813e"
"""GNU build-id of Unicorn 2.1.4's x86-64 wheel for Linux on PyPI."""

SUFFIX: Final = "_x86_64"
"""What the library's functions for this processor end with."""

UC_MEMORY_MAPPING: Final = 0x120
"""`uc_struct.memory_mapping`: the function that finds the region of a physical address."""

CPU_UC: Final = 0x81A8
"""`CPUState.uc`."""

TCG_UC: Final = 0x9970
"""`TCGContext.uc`."""
