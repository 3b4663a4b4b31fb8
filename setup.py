# SPDX-License-Identifier: GPL-2.0-only
"""What pyproject.toml cannot say: the native lane is built with the package (native/, docs/native.md)."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))  # where pip builds, it is not there

from native.command import BuildNative, extensions, wanted

setup(
    cmdclass={"build_ext": BuildNative},
    ext_modules=extensions(),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if wanted() == "abi3" else {},
)
