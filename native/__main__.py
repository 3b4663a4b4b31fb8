# SPDX-License-Identifier: GPL-2.0-only
"""`python -m native`: build the native lane in the source tree, if it is not there or of other sources."""

import argparse
import os
import sys
import warnings

from pyhv.lane import CHECKED, LANES, NATIVE, why_not


def main() -> int:
    """Parse the command line and do it; 0 if the lane is there, or need not be."""
    parser = argparse.ArgumentParser(prog="python -m native", description=__doc__)
    parser.add_argument(
        "--lane", choices=[lane for lane in LANES if lane in (NATIVE, CHECKED)], default=NATIVE
    )
    parser.add_argument("--force", action="store_true", help="build it even if it is there")
    parser.add_argument("--optional", action="store_true", help="where it cannot be built, say so and go on")
    options = parser.parse_args()
    if why_not(options.lane) or options.force:
        _build(options.lane, force=options.force)
    left = why_not(options.lane)
    if left and not options.optional:
        print(f"pyhv: the {options.lane} lane: {left}", file=sys.stderr)
        return 1
    return 0


def _build(lane: str, *, force: bool) -> None:
    try:
        from setuptools import Distribution, SetuptoolsDeprecationWarning
    except ImportError:
        print("pyhv: setuptools is not installed: pip install '.[dev]'", file=sys.stderr)
        return
    from native.command import BuildChecked, BuildNative, extensions
    from native.generate import ROOT

    os.chdir(ROOT)
    warnings.simplefilter("ignore", SetuptoolsDeprecationWarning)  # of commands that nobody has given
    distribution = Distribution({"name": "pyhv", "ext_modules": extensions(lane)})
    command = BuildChecked(distribution) if lane == CHECKED else BuildNative(distribution)
    command.inplace, command.force = True, force
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    sys.exit(main())
