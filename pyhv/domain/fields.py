# SPDX-License-Identifier: GPL-2.0-only
"""The fields of a vCPU that nearly every exit looks at, as machine words where the native lane is built.

The classes of this package are dataclasses over these. Interpreted, a base is a list of slots and nothing
else; compiled (`fields.pxd`), its slots are words of C, which Python reads through descriptors and compiled
code directly. Either way there is one place where a field is.
"""


class StackFields:
    """Of `KernelStack`."""

    __slots__ = ("sp", "ss")


class CallbackFields:
    """Of `CallbackEntry`."""

    __slots__ = ("address", "mask_events", "selector")


class CallbacksFields:
    """Of `Callbacks`."""

    __slots__ = ("event", "failsafe", "syscall", "syscall32", "sysenter")


class PagingFields:
    """Of `PagingMode`."""

    __slots__ = ("force_split", "kernel_l4", "merge_known", "merged", "user_l4")


class NmiFields:
    """Of `Nmi`."""

    __slots__ = ("in_handler", "pending")


class PortFields:
    """Of `PortAccess`."""

    __slots__ = ("iopl",)


class DebugFields:
    """Of `DebugState`."""

    __slots__ = ("unstepped",)


class VcpuFields:
    """Of `Vcpu`."""

    __slots__ = (
        "callbacks",
        "debug",
        "descriptors",
        "in_kernel",
        "info",
        "kernel_stack",
        "nmi",
        "other_gs_base",
        "paging",
        "ports",
        "traps",
    )
