# SPDX-License-Identifier: GPL-2.0-only
"""All handlers in one table: importing this module fills `HYPERCALLS` and `COMMANDS`.

Every module of this package is imported, so a new one that holds handlers needs no line here.
"""

from importlib import import_module
from pkgutil import iter_modules

import pyhv.hypercalls
from pyhv.hypercalls.table import COMMANDS, HYPERCALLS

for _module in iter_modules(pyhv.hypercalls.__path__):
    import_module(f"pyhv.hypercalls.{_module.name}")

__all__ = ["COMMANDS", "HYPERCALLS"]
