# SPDX-License-Identifier: GPL-2.0-only
"""The same run again: what comes in is written down with its moment, and comes in again at that moment."""
