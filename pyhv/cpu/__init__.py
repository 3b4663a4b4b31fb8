# SPDX-License-Identifier: GPL-2.0-only
"""The processor: Unicorn behind a narrow door. Nothing outside this package imports the emulator."""
