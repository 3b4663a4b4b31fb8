# SPDX-License-Identifier: GPL-2.0-only
"""Hypercalls: one table, one handler each."""
