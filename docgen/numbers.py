# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv/guests/hypercalls.inc`, the numbers for kernels in assembly: `python -m docgen.numbers`.

Numbers are those of `abi/numbers.py`; the arguments behind them are those of the handlers.
"""

from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.hypercalls.table import Entry

_INTRODUCTION = """\
# SPDX-License-Identifier: GPL-2.0-only
#
# hypercalls.inc - numbers of the hypercalls (Xen's public header xen.h), and what each takes
#
# Generated: python -m docgen.numbers > pyhv/guests/hypercalls.inc
"""
_COLUMN = 56


def _line(entry: Entry) -> str:
    arguments = ", ".join(argument.name for argument in entry.wide.arguments)
    return f".set __HYPERVISOR_{entry.name}, {entry.number:d}".ljust(_COLUMN) + f"# ({arguments})"


def document() -> str:
    """The whole file."""
    lines = [_line(entry) for entry in HYPERCALLS if entry is not None]
    return _INTRODUCTION + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
