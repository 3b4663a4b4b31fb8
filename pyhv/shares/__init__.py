# SPDX-License-Identifier: GPL-2.0-only
"""Directories of the host for guests: a server of 9P2000.L. It knows no guest and no ring."""
