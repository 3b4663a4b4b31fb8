# SPDX-License-Identifier: GPL-2.0-only
"""All handlers in one table: importing this module fills `HYPERCALLS`."""

from pyhv.hypercalls import (
    cpustate,
    debugreg,
    events,
    exchange,
    grantcopy,
    grantmap,
    grants,
    memory,
    mmu,
    multicall,
    physdev,
    refused,
    reservation,
    sched,
    vcpu,
    version,
)
from pyhv.hypercalls.table import HYPERCALLS

MODULES = (
    cpustate,
    debugreg,
    events,
    exchange,
    grantcopy,
    grantmap,
    grants,
    memory,
    mmu,
    multicall,
    physdev,
    refused,
    reservation,
    sched,
    vcpu,
    version,
)
"""Every module that holds handlers, in alphabetical order."""

__all__ = ["HYPERCALLS", "MODULES"]
