# SPDX-License-Identifier: GPL-2.0-only
"""Exits: from what happened on the processor to the one handler for it, and back into the guest."""
