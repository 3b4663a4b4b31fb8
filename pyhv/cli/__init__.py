# SPDX-License-Identifier: GPL-2.0-only
"""The command line, and what a person at a terminal sees. `main` reads like a table of contents."""
