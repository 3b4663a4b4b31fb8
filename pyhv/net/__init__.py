# SPDX-License-Identifier: GPL-2.0-only
"""Networks on the host's side: frames, switches, and what leads outside. No guest, no ring, no machine."""
