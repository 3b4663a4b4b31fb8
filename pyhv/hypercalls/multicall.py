# SPDX-License-Identifier: GPL-2.0-only
"""multicall: a list of hypercalls in one (public header `xen.h`, `struct multicall_entry`)."""

import struct
from typing import Final

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import NR_HYPERCALLS, Hypercall
from pyhv.abi.structs import MulticallEntry
from pyhv.address import MASK32
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.signature import Ptr, u32
from pyhv.hypercalls.table import HYPERCALLS, hypercall

_MULTICALL: Final = int(Hypercall.MULTICALL)


@hypercall(Hypercall.MULTICALL)
def multicall(call: Call, calls: Ptr, count: u32) -> int:
    """Perform each entry of a list (`MulticallEntry`) and store its result there; gives way in between.

    A sub-call that leaves the context ends the list. One that blocks or yields does not: the vCPU leaves the
    processor after the last entry. What a sub-call refuses is its entry's result (EINVAL for a multicall,
    ENOSYS for what is no hypercall). EFAULT: an entry cannot be read or its result not stored, which ends the
    list.
    """
    memory, width = call.memory, call.width
    layout = MulticallEntry.layout(width)
    for number in range(count):
        at = calls + layout.size * number
        op, _result, *arguments = layout.packer.unpack(memory.read(at, layout.size))
        op &= MASK32
        entry = HYPERCALLS[op] if op < NR_HYPERCALLS else None
        if op == _MULTICALL:
            result = -Errno.EINVAL
        elif entry is None:
            result = -Errno.ENOSYS
        else:
            form = entry.form(width)
            call.count_hypercall(op)
            try:
                result = form.invoke(call, arguments)
            except XenError as error:
                result = -error.errno
            except Again as again:
                words = form.words(again.arguments)
                packed = struct.pack(f"<{len(words)}{'Q' if width == 64 else 'I'}", *words)
                memory.write(at + layout.offsets["arg0"], packed)
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
