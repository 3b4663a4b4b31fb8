# SPDX-License-Identifier: GPL-2.0-only
"""What is on a disk: partitions, file systems, files, boot configurations. For reading only.

A disk may come from anybody. Whatever lies in it is looked at before it is believed, every loop is bounded by
what was asked for, and what does not hold is a VolumeError.
"""
