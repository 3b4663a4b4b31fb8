# SPDX-License-Identifier: GPL-2.0-only
"""Looking at whole machines: statistics, traces, digests, crash reports. Nothing here changes a machine."""
