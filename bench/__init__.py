# SPDX-License-Identifier: GPL-2.0-only
"""Measurements: pyhv against its peer, and the cost of each of its parts. See docs/benchmarks.md."""
