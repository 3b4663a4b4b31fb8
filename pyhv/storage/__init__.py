# SPDX-License-Identifier: GPL-2.0-only
"""What a guest's disk is on the host: files, block devices, images in layers, servers; no guest and no ring.

`disk.py` says what a disk is, `spec.py` how a person names one, `open.py` makes one of the other.
"""
