# SPDX-License-Identifier: GPL-2.0-only
"""Target `rings`: what back ends read of pages that guests write - the console's and xenstore's.

Two domains share one store, each with its pages. An input is a sequence of acts: well-formed messages with
plausible paths and odd ones, raw bytes into the ring, indices set to anything, kicks, and a domain's release
and return. Checked: no exception; a kick's work is bounded by what was in the ring; quotas hold; what a
domain may not see it does not see; a released domain leaves nothing.
"""

import struct

from fuzz.source import Source
from fuzz.target import Finding, Target, arm
from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.xs_wire import Message
from pyhv.address import MASK32, Mfn
from pyhv.devices.console import ConsoleRing
from pyhv.devices.xenstore_ring import XenstoreRing
from pyhv.shared_page import SharedPage
from pyhv.xenstore.domu import DomU, remove_domu, write_domu
from pyhv.xenstore.store import Store
from pyhv.xenstore.wire import Connection, encode

REQ_PROD, RSP_CONS, RSP_PROD, CONNECTION = 2052, 2056, 2060, 2068
SECRET = b"what only domain 0 and domain 7 may read"
LIFETIME = 4000
_MOST_BELLS = 64

PATHS = (
    b"data", b"data/a", b"data/a/b", b"control/shutdown", b"/local/domain/1", b"/local/domain/2/data",
    b"/local/domain/1/data/x", b"/", b"/vm", b"name", b"", b"/tool", b"@introduceDomain", b"@releaseDomain",
    b"@other", b"data/", b"//", b"/secret", b"/local/domain/0", b"a" * 300, b"device/suspend/event-channel",
    b"data/" + b"b/" * 40 + b"c", b"\xff\xfe", b"../x", b"/local", b"error/1", b"/open", b"/open/x",
)  # fmt: skip
VALUES = (
    b"", b"1", b"x" * 100, b"y" * 2000, b"z" * 4000, b"\0", b"T", b"F", b"n1", b"r2", b"b0", b"w1", b"q9",
    b"-5", b"99999999999999999999", b"n1\0r2\0b0\0w1\0r7\0r8", b"n2", b"32752",
)  # fmt: skip


class Page(SharedPage):
    """A guest's frame."""

    def __init__(self) -> None:
        self.mfn = Mfn(0)
        self.bytes = bytearray(4096)

    def read(self, offset: int, length: int) -> bytes:
        """A copy."""
        if not 0 <= offset <= offset + length <= 4096:
            raise Finding("page", f"a read of {length} bytes at {offset}")
        return bytes(self.bytes[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        if not 0 <= offset <= offset + len(data) <= 4096:
            raise Finding("page", f"a write of {len(data)} bytes at {offset}")
        self.bytes[offset : offset + len(data)] = data

    def window(self, offset: int, length: int) -> memoryview:
        """Bytes as they are."""
        return memoryview(self.bytes)[offset : offset + length].toreadonly()


class Side:
    """One domain's end."""

    def __init__(self, store: Store, domid: int) -> None:
        self.store, self.domid = store, domid
        self.bells = 0
        self.transactions = [0]
        write_domu(store, DomU(domid, f"guest{domid}", f"{domid:08}-0-0-0-0", 4096, 2, 1, 1, 2, 2))
        store.introduce(domid)
        self.store_page, self.console_page = Page(), Page()
        self.connection = Connection(store, domid)
        self.ring = XenstoreRing(self.store_page, self.connection, self._ring_bell)
        self.console = ConsoleRing(self.console_page, self._ring_bell)
        self.printed = 0

    def _ring_bell(self) -> None:
        self.bells += 1

    def kick(self) -> None:
        """The guest rings for the store."""
        self.bells = 0
        self.ring.service()
        if self.bells > _MOST_BELLS:
            raise Finding("bells", f"one kick rang {self.bells} times")

    def request(self, data: bytes) -> None:
        """Put bytes into the request ring as a guest does, and ring; take what is answered."""
        for _ in range(16):
            cons, prod = (self.store_page.read_u32(at) for at in (2048, REQ_PROD))
            room = 1024 - (prod - cons & MASK32)
            if not 0 <= room <= 1024:
                return
            piece, data = data[:room], data[room:]
            for index, byte in enumerate(piece):
                self.store_page.bytes[prod + index & 1023] = byte
            self.store_page.write_u32(REQ_PROD, prod + len(piece) & MASK32)
            self.kick()
            self.take()
            if not data:
                return

    def take(self) -> bytes:
        """Read all answers."""
        taken = b""
        for _ in range(16):
            cons, prod = (self.store_page.read_u32(at) for at in (RSP_CONS, RSP_PROD))
            used = prod - cons & MASK32
            if not 0 < used <= 1024:
                break
            taken += bytes(self.store_page.bytes[1024 + (cons + n & 1023)] for n in range(used))
            self.store_page.write_u32(RSP_CONS, prod)
            self.kick()
        if SECRET in taken:
            raise Finding("store secret", f"domain {self.domid} has read what it may not")
        self._learn(taken)
        return taken

    def _learn(self, taken: bytes) -> None:
        """Transaction numbers in answers."""
        if len(taken) > 17 and struct.unpack_from("<I", taken)[0] == Message.TRANSACTION_START:
            number = taken[16:].split(b"\0", 1)[0]
            if number.isdigit():
                self.transactions = [*self.transactions[-7:], int(number) & MASK32]


class Rings(Target):
    """Runs inputs on two domains' rings."""

    name = "rings"
    unit = "kicks"
    max_length = 768

    def __init__(self) -> None:
        super().__init__()
        self._store: Store | None = None
        self._sides: list[Side] = []
        self._age = 0

    def _fresh(self) -> list[Side]:
        if self._store is None:
            store = self._store = Store()
            store.write("/secret", SECRET)
            store.set_permissions("/secret", ["n0", "r7"])
            store.mkdir("/open")
            store.set_permissions("/open", ["b0"])
            self._empty = store.dump()
            self._sides = [Side(store, 1), Side(store, 2)]
            self._age = 0
        return self._sides

    def run(self, data: bytes) -> bytes:
        """Let the guests act."""
        sides, source = self._fresh(), Source(data)
        self.started = False
        self.steps.clear()
        while source.more:
            self.steps.append(source.at)
            arm()
            how = source.u8()
            self._act(sides, how >> 7, how & 127, source)
            self.calls += 1
            self._age += 1
        self._check(sides)
        if self._age > LIFETIME:
            self.finish()
        return source.used()

    def _act(self, sides: list[Side], which: int, how: int, source: Source) -> None:
        side = sides[which]
        if how < 88:
            side.request(self._message(side, source))
        elif how < 96:
            side.request(source.raw(source.u8()))
        elif how < 104:
            offset = source.pick(
                (2048, REQ_PROD, RSP_CONS, RSP_PROD, CONNECTION, 2064, 2072, source.u8() * 8)
            )
            value = source.u8() if source.chance(128) else source.number(4)
            side.store_page.write_u32(offset, value)
            side.kick()
        elif how < 108:
            side.store_page.write_u32(CONNECTION, 1)
            side.kick()
        elif how < 112:
            side.take()
        elif how < 124:
            self._console(side, how, source)
        elif how < 126:
            assert self._store is not None
            remove_domu(self._store, side.domid)
            if self._store.owned_nodes(side.domid):
                raise Finding("store leak", f"released domain {side.domid} still owns nodes")
            sides[which] = Side(self._store, side.domid)
        else:
            side.kick()

    def _message(self, side: Side, source: Source) -> bytes:
        kind = source.u8() % 28
        path, value = source.pick(PATHS), source.pick(VALUES)
        if source.chance(16):
            path = source.raw(source.u8() & 31)
        transaction = source.pick(side.transactions) if source.chance(128) else 0
        if source.chance(8):
            transaction = source.number(4)
        if kind in (Message.WATCH, Message.UNWATCH):
            payload = path + b"\0" + source.raw(source.u8() & 3) + b"\0"
        elif kind in (Message.WRITE, Message.SET_PERMS, Message.DIRECTORY_PART):
            payload = path + b"\0" + value + (b"" if kind == Message.WRITE else b"\0")
        elif kind in (Message.TRANSACTION_START, Message.TRANSACTION_END):
            payload = value[:1] + b"\0"
        elif kind in (Message.INTRODUCE, Message.RELEASE, Message.GET_DOMAIN_PATH, Message.SET_TARGET):
            payload = b"%d\0" % (source.u8() if source.chance(200) else DOMID_SELF) + value
        else:
            payload = path + (b"" if source.chance(8) else b"\0")
        message = bytearray(encode(kind, source.u8(), transaction, payload[:4096]))
        if source.chance(8):
            struct.pack_into("<I", message, 12, source.number(4))
        return bytes(message)

    def _console(self, side: Side, how: int, source: Source) -> None:
        page = side.console_page
        if how < 118:
            offset = source.pick((3072, 3076, 3080, 3084, 3088))
            page.write_u32(offset, source.u8() if source.chance(128) else source.number(4))
        elif how < 121:
            fed = side.console.feed(b"i" * (source.u8() * 8))
            if fed > 1024:
                raise Finding("console", f"a ring of 1024 bytes took {fed}")
        data = side.console.drain()
        if len(data) > 2048:
            raise Finding("console", f"{len(data)} bytes came out of a ring of 2048")
        if side.console.drain() and not side.console.broken:
            raise Finding("console", "the same output was taken twice")

    def _check(self, sides: list[Side]) -> None:
        assert self._store is not None
        quota = self._store.quota  # watches and transactions: one more can be had, as from xenstored
        database = self._store._database
        for side in sides:
            for what, size, limit in (
                ("nodes", self._store.owned_nodes(side.domid), quota.nodes),
                ("watches", database.watches_held[side.domid], quota.watches + 1),
                ("transactions", database.transactions_held[side.domid], quota.transactions + 1),
            ):
                if size > limit or size < 0:
                    raise Finding("store quota", f"domain {side.domid} has {size} {what}")

    def finish(self) -> None:
        """Both domains go; the store is as it was."""
        store, self._store = self._store, None
        self.started = True
        if store is None:
            return
        for side in self._sides:
            remove_domu(store, side.domid)
        left = _paths(store.dump()) - _paths(self._empty)
        if left:
            raise Finding("store leak", f"left behind: {sorted(left)[:3]}")

    def abandon(self) -> None:
        """Drop the store."""
        self._store = None
        self.started = True


def _paths(dump: str) -> set[str]:
    return {line.split(" = ")[0] for line in dump.splitlines()}
