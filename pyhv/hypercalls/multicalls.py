# SPDX-License-Identifier: GPL-2.0-only
"""The entries of a multicall, one after the other."""

import struct
from typing import Final

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import NR_HYPERCALLS, Hypercall
from pyhv.abi.structs import MulticallEntry
from pyhv.address import MASK32
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call

_MULTICALL: Final = int(Hypercall.MULTICALL)
_LAYOUTS: Final = {width: MulticallEntry.layout(width) for width in (32, 64)}


def perform_calls(call: Call, calls: int, count: int) -> int:
    """Perform `count` entries, the first of which is at `calls`; see `multicall`."""
    memory, width, forms = call.memory, call.width, call.forms
    layout = _LAYOUTS[width]
    packer, size, result_at = layout.packer, layout.size, layout.offsets["result"]
    for number in range(count):
        at = calls + size * number
        fields = memory.unpack(packer, at)
        op = fields[0] & MASK32
        form = forms[op] if op < NR_HYPERCALLS else None
        if op == _MULTICALL:
            result = -Errno.EINVAL
        elif form is None:
            result = -Errno.ENOSYS
        else:
            call.count_hypercall(op)
            try:
                _op, _result, a, b, c, d, e, f = fields
                result = form.invoke(call, a, b, c, d, e, f)
            except XenError as error:
                result = -error.errno
            except Again as again:
                words = form.words(again.arguments)
                packed = struct.pack(f"<{len(words)}{'Q' if width == 64 else 'I'}", *words)
                memory.write(at + layout.offsets["arg0"], packed)
                raise Again(at, count - number) from again
        try:
            call.write_word(at + result_at, result)
        except XenError:
            if not call.left_context:
                raise
        if call.left_context:
            return 0
        if call.gives_way(number + 1, count):
            raise Again(at + size, count - number - 1)
    return 0
