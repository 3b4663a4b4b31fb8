# SPDX-License-Identifier: GPL-2.0-only
"""Kernels in assembly for the Xen PV ABI, and the builder that makes images of them."""
