# SPDX-License-Identifier: GPL-2.0-only
"""Builds the native lane: the modules of `pyhv.lane.HOT`, as they stand, compiled by Cython.

Each of them is ordinary Python with a `.pxd` beside it that says which of its attributes and arguments are
machine words. To a copy of the text one thing is done before Cython sees it: names of constants become their
values (`burn.py`), since a module's globals are objects to Cython.

    constants.py    which names are constants, and what they are
    burn.py         written into a module's functions
    declared.py     what the .pxd files declare must be there
    generate.py     all modules, to C
    command.py      setuptools' `build_ext`: to C, to extension modules, and their stamp
    __main__.py     `make native`

docs/native.md explains it. This package is for building alone and is not installed.
"""
