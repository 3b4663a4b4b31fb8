# SPDX-License-Identifier: GPL-2.0-only
"""What writes the generated pages of `docs/` (`make docs`), from the tables that also do the work.

Not installed. Each module has `document()`, which a test compares with the page, and prints it if run.
"""
