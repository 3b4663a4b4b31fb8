# SPDX-License-Identifier: GPL-2.0-only
"""Builds the native lane: the modules of `HOT`, as they stand, compiled by Cython.

Each of them is ordinary Python with a `.pxd` beside it that says which of its attributes and arguments are
machine words. Two things are done to a copy of the text before Cython sees it (`burn.py`): names of constants
become their values, since a module's globals are objects to Cython; nothing else.

    python -m native            build for this interpreter, into pyhv/native/<hash of the sources>/
"""
