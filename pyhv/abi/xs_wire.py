# SPDX-License-Identifier: GPL-2.0-only
"""Numbers of the xenstore protocol (public header `io/xs_wire.h`)."""

import enum


class Message(enum.IntEnum):
    """Message types (xsd_sockmsg_type)."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


class LinkError(enum.IntEnum):
    """Why a connection is dead: the values of the ring's `error` field."""

    NONE = 0
    COMMUNICATION = 1
    RING_INDEX = 2
    PROTOCOL = 3
