# SPDX-License-Identifier: GPL-2.0-only
"""gdb's remote serial protocol, for the guests of a machine (GDB manual, appendix E). `docs/gdb.md` is its
page."""
