# SPDX-License-Identifier: GPL-2.0-only
"""`python compile_alone.py MODULE`, with a copy of the sources on the path: compile one hot module again.

The others are what they were; so the stamp says of the copy what is true of its sources. It is compiled
without optimizing, which is several times as fast.
"""

import os
import sys
from pathlib import Path

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

from native.generate import ROOT, generate
from pyhv.lane import NATIVE, STAMP, Stamp, file_name, folder_of, hash_of


def main(module: str) -> None:
    """Into the lane's folder of the copy."""
    assert Path.cwd() == ROOT, f"{ROOT} is not the copy"
    folder = folder_of(NATIVE)
    stamp = Stamp.read((folder / STAMP).read_text(encoding="utf-8"))
    made = folder / file_name(module, stamp.suffix)
    made.unlink()
    generated = generate(ROOT / "build" / "alone", modules=[module])
    extension = Extension(
        f"pyhv.{folder.name}.{file_name(module, '')}",
        sources=[os.path.relpath(generated.texts[module])],
        extra_compile_args=["-O0", "-w", "-fno-strict-aliasing", "-fwrapv"],
    )
    command = build_ext(Distribution({"name": "pyhv", "ext_modules": [extension]}))
    command.inplace = True
    command.ensure_finalized()
    command.run()
    assert made.is_file(), f"{made} was not made"
    sources = {path: hash_of(ROOT / path) for path in stamp.sources}
    (folder / STAMP).unlink()
    (folder / STAMP).write_text(stamp._replace(sources=sources).text(), encoding="utf-8")


main(*sys.argv[1:])
