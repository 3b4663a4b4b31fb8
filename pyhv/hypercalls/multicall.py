# SPDX-License-Identifier: GPL-2.0-only
"""multicall: a list of hypercalls in one (public header `xen.h`, `struct multicall_entry`)."""

import struct

from pyhv.abi.errno import Errno
from pyhv.abi.structs import MulticallEntry
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.table import HYPERCALLS, Entry, compat_words, hypercall, invoke, invoke_compat

MULTICALL = 13


@hypercall(MULTICALL, "multicall", "calls:ptr count:u32")
def multicall(call: Call, calls: int, count: int) -> int:
    """Perform each entry and store its result; a sub-call that leaves the context ends the list.

    A sub-call that blocks or yields does not: the vCPU leaves the processor after the last entry.
    """
    memory = call.memory
    layout = MulticallEntry.layout(call.width)
    for number in range(count):
        at = calls + layout.size * number
        op, _result, *arguments = layout.packer.unpack(memory.read(at, layout.size))
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
                    if call.width == 64:
                        result = invoke(entry, call, tuple(arguments))
                    else:
                        result = invoke_compat(entry, call, arguments)
                except XenError as error:
                    result = -error.errno
                except Again as again:
                    memory.write(at + layout.offsets["arg0"], _packed(call, entry, again))
                    raise Again(at, count - number) from again
        try:
            call.write_word(at + layout.offsets["result"], result)
        except XenError:
            if not call.left_context:
                raise
        if call.left_context:
            return 0
        if call.gives_way(number + 1, count):
            raise Again(at + layout.size, count - number - 1)
    return 0


def _packed(call: Call, entry: Entry, again: Again) -> bytes:
    """The arguments with which a sub-call is to be continued, as the caller's words."""
    if call.width == 64:
        return struct.pack(f"<{len(again.arguments)}Q", *again.arguments)
    words = compat_words(entry, again.arguments)
    return struct.pack(f"<{len(words)}I", *words)
