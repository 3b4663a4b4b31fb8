# SPDX-License-Identifier: GPL-2.0-only
"""The Xen public interface as data: numbers, flags and structure layouts, each declared once."""
