# SPDX-License-Identifier: GPL-2.0-only
"""Isolation, attacked: coverage-guided fuzzers of everything that a guest can say to pyhv.

`python -m fuzz TARGET` runs one; `docs/fuzzing.md` says what each target feeds and what it checks. Replaying
an input needs nothing but pyhv; finding new ones needs atheris (`pip install -e '.[fuzz]'`).
"""
