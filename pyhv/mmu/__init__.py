# SPDX-License-Identifier: GPL-2.0-only
"""Memory: who owns each frame, what type it has, and the page tables that guests may build."""
