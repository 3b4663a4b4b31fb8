# SPDX-License-Identifier: GPL-2.0-only
"""Why there is no native lane."""


class BuildProblem(Exception):
    """The native lane cannot be built; the message is one sentence."""
