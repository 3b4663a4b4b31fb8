# SPDX-License-Identifier: GPL-2.0-only
"""How one domain tells another that something happened: event channels, their delivery, and timers.

`channels` is the wiring (which port leads where), `delivery` the bits in guest memory that say what is
pending, `timers` the order in which deadlines fall due.
"""
