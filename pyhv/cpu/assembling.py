# SPDX-License-Identifier: GPL-2.0-only
"""Instances of Keystone that read numbers as they are written: every use of it begins here.

Keystone never sets the radix of a new instance: its `MCAsmInfo.Radix` is whatever the memory held before. If
that happens to be 16, `[rcx + 16]` means 22 and an address in decimal another one, and the code that comes of
it, most of it to be executed by the host, is wrong without any error. So an instance is asked what it makes
of a number before it is used. One that reads it otherwise is kept while another one is made, which then gets
other memory.
"""

from typing import Final

import keystone

from pyhv.errors import EngineError

_TRIES: Final = 64


def new_assembler(architecture: int = keystone.KS_ARCH_X86, mode: int = keystone.KS_MODE_64) -> keystone.Ks:
    """A Keystone that reads `10` as ten. EngineError: none could be had."""
    others = []
    for _ in range(_TRIES):
        made = keystone.Ks(architecture, mode)
        if made.asm(".byte 10")[0] == [10]:
            return made
        others.append(made)
    raise EngineError(f"Keystone reads decimal numbers as others, {len(others)} times of {_TRIES}.")
