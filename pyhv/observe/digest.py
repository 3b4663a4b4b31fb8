# SPDX-License-Identifier: GPL-2.0-only
"""One number for a whole run: a hash chain over every exit and the registers at it.

    state 0     = 32 zero bytes
    state n + 1 = BLAKE2b-256(state n | time, domid, vcpu, kind, detail | RAX..R15, RIP, RFLAGS)

all little-endian, u64 but for domid (u16), vcpu (u16) and kind (u32). Two runs in virtual time with the same
images, seed and input have the same chain; the first exit at which two runs differ is where their chains
part. In real time the times differ, and so does every digest.
"""

import hashlib
import struct
from typing import Final

from pyhv.address import MASK64
from pyhv.cpu.exits import ExitRecord

REGISTERS: Final = 18
_SIZE: Final = 32
_RECORD: Final = struct.Struct(f"<QHHIQ{REGISTERS}Q")


class Digest:
    """An observer that keeps the chain's end."""

    def __init__(self) -> None:
        self._state = bytes(_SIZE)
        self.count = 0
        """Exits so far."""

    def exit(self, record: ExitRecord) -> None:
        """Add one link."""
        time, domid, vcpu, kind, detail, registers = record
        packed = _RECORD.pack(time, domid, vcpu, kind, detail & MASK64, *registers)
        self._state = hashlib.blake2b(self._state + packed, digest_size=_SIZE).digest()
        self.count += 1

    def hexdigest(self) -> str:
        """The chain's end, 64 hexadecimal digits."""
        return self._state.hex()

    def summary(self) -> str:
        """What goes into the file: the digest, a space, and the number of exits."""
        return f"{self.hexdigest()} {self.count}\n"
