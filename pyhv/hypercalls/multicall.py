# SPDX-License-Identifier: GPL-2.0-only
"""multicall: a list of hypercalls in one (public header `xen.h`, `struct multicall_entry`)."""

import struct

from pyhv.abi.errno import Errno
from pyhv.abi.structs import MulticallEntry
from pyhv.address import MASK64
from pyhv.errors import XenError
from pyhv.hypercalls.context import STEPS_A_LOOK, Again, Call
from pyhv.hypercalls.table import HYPERCALLS, hypercall, invoke

_ENTRY = MulticallEntry.layout64.packer
_RESULT = MulticallEntry.layout64.offsets["result"]
_ARGS = MulticallEntry.layout64.offsets["arg0"]
MULTICALL = 13


@hypercall(MULTICALL, "multicall", "calls:ptr count:u32")
def multicall(call: Call, calls: int, count: int) -> int:
    """Perform each entry and store its result; a sub-call that leaves the context ends the list.

    A sub-call that blocks or yields does not: the vCPU leaves the processor after the last entry.
    """
    memory = call.memory
    for number in range(count):
        at = calls + _ENTRY.size * number
        op, _result, *arguments = _ENTRY.unpack(memory.read(at, _ENTRY.size))
        op &= 0xFFFF_FFFF
        if op == MULTICALL:
            result = -Errno.EINVAL
        else:
            entry = HYPERCALLS[op] if op < 64 else None
            if entry is None:
                result = -Errno.ENOSYS
            else:
                call.count_hypercall(op)
                try:
                    result = invoke(entry, call, tuple(arguments))
                except XenError as error:
                    result = -error.errno
                except Again as again:
                    memory.write(at + _ARGS, struct.pack(f"<{len(again.arguments)}Q", *again.arguments))
                    raise Again(at, count - number) from again
        try:
            memory.write_u64(at + _RESULT, result & MASK64)
        except XenError:
            if not call.left_context:
                raise
        if call.left_context:
            return 0
        left = count - number - 1
        if left and left % STEPS_A_LOOK == 0 and call.preempted(STEPS_A_LOOK):
            raise Again(at + _ENTRY.size, left)
    return 0
