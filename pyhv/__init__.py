# SPDX-License-Identifier: GPL-2.0-only
"""pyhv: a paravirtualizing hypervisor in Python that speaks the genuine Xen PV ABI."""

__version__ = "0.1.0"
