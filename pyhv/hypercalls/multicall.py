# SPDX-License-Identifier: GPL-2.0-only
"""multicall: a list of hypercalls in one (public header `xen.h`, `struct multicall_entry`)."""

from pyhv.abi.numbers import Hypercall
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.multicalls import perform_calls
from pyhv.hypercalls.signature import Ptr, u32
from pyhv.hypercalls.table import hypercall


@hypercall(Hypercall.MULTICALL)
def multicall(call: Call, calls: Ptr, count: u32) -> int:
    """Perform each entry of a list (`MulticallEntry`) and store its result there; gives way in between.

    A sub-call that leaves the context ends the list. One that blocks or yields does not: the vCPU leaves the
    processor after the last entry. What a sub-call refuses is its entry's result (EINVAL for a multicall,
    ENOSYS for what is no hypercall). EFAULT: an entry cannot be read or its result not stored, which ends the
    list.
    """
    return perform_calls(call, calls, count)
