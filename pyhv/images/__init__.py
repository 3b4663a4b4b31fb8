# SPDX-License-Identifier: GPL-2.0-only
"""From what a person names - a guest of pyhv's, a kernel that Debian packages, a file - to what can boot."""
