# SPDX-License-Identifier: GPL-2.0-only
"""States of a split driver's two ends (public header `io/xenbus.h`)."""

import enum


class XenbusState(enum.IntEnum):
    """What an end says of itself in its node `state`."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    """Ready: the other end may read the features and write what it takes to connect."""
    INITIALISED = 3
    """All that it takes to connect has been written."""
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8
