# SPDX-License-Identifier: GPL-2.0-only
"""Whole machines at one moment: taken, put back, copied, written to files and read again."""
