# SPDX-License-Identifier: GPL-2.0-only
"""The store's protocol: bytes in, bytes out.

Specified by the public header io/xs_wire.h and docs/misc/xenstore.txt. A message is

    +--------+--------+--------+--------+------------------+
    | type   | req_id | tx_id  | len    | len bytes, <4097 |     u32 each, little-endian
    +--------+--------+--------+--------+------------------+

and its reply repeats type, req_id and tx_id, or has type ERROR and an errno name. Watch events come
unasked, between replies. Everything that arrives is a guest's and may be nonsense: nonsense inside a
message is answered EINVAL, a length above 4096 ends the connection. What transports the bytes is not known
here.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from pyhv.abi.xs_wire import LinkError, Message
from pyhv.frozen import frozen
from pyhv.state import Plain, construct, refusal, state
from pyhv.xenstore.client import NO_TRANSACTION
from pyhv.xenstore.limits import DOM0, DOMID_MAX, PAYLOAD_MAX, StoreError, domain_path
from pyhv.xenstore.permissions import Permissions
from pyhv.xenstore.store import Store

HEADER: Final = struct.Struct("<4I")
"""type, req_id, tx_id, len."""
MESSAGE_MAX: Final = HEADER.size + PAYLOAD_MAX
_OK: Final = b"OK\0"
_PRIVILEGED: Final = frozenset(
    {Message.CONTROL, Message.INTRODUCE, Message.RELEASE, Message.RESUME, Message.SET_TARGET}
)
"""For a guest EACCES; for domain 0 ENOSYS: the machine itself does these, not a message."""


def encode(kind: int, req_id: int, tx_id: int, payload: bytes) -> bytes:
    """One message as bytes; `payload` is at most PAYLOAD_MAX long."""
    return HEADER.pack(kind, req_id, tx_id, len(payload)) + payload


@frozen
class Request:
    """One decoded message from a client."""

    kind: int
    req_id: int
    tx_id: int
    payload: bytes

    def strings(self) -> list[bytes]:
        """The NUL-terminated strings of the payload, without their NULs; an unterminated rest is ignored."""
        return self.payload.split(b"\0")[:-1]

    def one_string(self) -> str:
        """The payload as exactly one NUL-terminated string; EINVAL otherwise."""
        strings = self.strings()
        if len(strings) != 1 or not self.payload.endswith(b"\0"):
            raise StoreError("EINVAL", "one NUL-terminated string expected")
        return _text(strings[0])

    def two_strings(self) -> tuple[str, bytes]:
        """The payload as exactly two strings, the first one text; EINVAL otherwise."""
        strings = self.strings()
        if len(strings) != 2:
            raise StoreError("EINVAL", "two NUL-terminated strings expected")
        return _text(strings[0]), strings[1]

    def one_domid(self) -> int:
        """The payload as one domain number; EINVAL otherwise."""
        return _number(self.one_string(), DOMID_MAX)


@dataclass(slots=True)
class _Saved:
    """The state of a connection."""

    closed: bool
    error: LinkError
    events_dropped: int
    input: bytearray
    output: bytearray
    events: list[bytes]


class Connection:
    """One client's end of the store.

    Push bytes in with `feed`, pull bytes out with `take`; both may be of any size. While output waits, no
    request is executed, and `feed` accepts no more than one message's worth: a client that does not read
    cannot make the store grow. `on_output`, if set, is called when a watch event is queued while no
    request is being executed; it should arrange for `take`.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "domid": "whoever connects it",
        "on_output": "whoever carries the bytes sets it",
        "_store": "whoever connects it",
        "_client": "said by the store",
        "_event_bytes": "follows from the events",
        "_executing": "false between two requests",
    }

    def __init__(self, store: Store, domid: int) -> None:
        self.domid = domid
        self.error = LinkError.NONE
        self.events_dropped = 0
        """Watch events lost because too many were waiting."""
        self.on_output: Callable[[], None] | None = None
        self._store = store
        self._client = store.connect(domid, self._event)
        self._input = bytearray()
        self._output = bytearray()
        self._events: dict[bytes, None] = {}  # an ordered set: equal events that wait are one
        self._event_bytes = 0
        self._executing = False

    @property
    def alive(self) -> bool:
        """False after a protocol error, `fail`, `close`, or the domain's release."""
        return self.error is LinkError.NONE and not self._client.closed

    @property
    def has_output(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._output or self._events)

    @property
    def room(self) -> int:
        """How many bytes `feed` accepts now."""
        return MESSAGE_MAX - len(self._input) if self.alive else 0

    def feed(self, data: bytes) -> int:
        """Accept bytes from the client and execute complete requests; returns how many were accepted.

        With no bytes, resumes what pending output had held up.
        """
        accepted = 0
        while self.alive:
            chunk = data[accepted : accepted + self.room]
            accepted += len(chunk)
            self._input += chunk
            if not self._execute_one():
                break
        return accepted

    def take(self, limit: int) -> bytes:
        """At most `limit` bytes for the client."""
        while len(self._output) < limit and self._events:
            event = next(iter(self._events))
            del self._events[event]
            self._event_bytes -= len(event)
            self._output += event
        data = bytes(self._output[:limit])
        del self._output[:limit]
        return data

    def fail(self, error: LinkError) -> None:
        """Declare the connection broken: drop its watches, its transactions and all bytes."""
        self._forget()
        self.error = error

    def reset(self) -> None:
        """Start afresh, as after a reconnection; a released domain stays dead."""
        self._forget()
        self.error = LinkError.NONE

    def close(self) -> None:
        """End for good."""
        self._forget()
        self._store.disconnect(self._client)

    def interpose(self, before: Callable[[Request], None] | None) -> None:
        """Have `before` look at each request before it is executed: it may raise `StoreError`, an answer.

        None: no longer. For tests of guests; while nobody looks, nobody is asked.
        """
        vars(self).pop("_answer", None)
        if before is not None:

            def answer(request: Request) -> bytes:
                before(request)
                return Connection._answer(self, request)

            vars(self)["_answer"] = answer

    def state(self) -> dict[str, Plain]:
        """Bytes on their way, in both directions, and whether it is broken; its client is the store's."""
        return state(
            _Saved(
                closed=self._client.closed,
                error=self.error,
                events_dropped=self.events_dropped,
                input=self._input,
                output=self._output,
                events=list(self._events),
            )
        )

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved; StateError."""
        found = construct(_Saved, dict(saved))
        events = dict.fromkeys(found.events)
        event_bytes = sum(map(len, events))
        if max(len(found.input), len(found.output)) > MESSAGE_MAX:
            raise refusal("input or output", "is longer than a message")
        if event_bytes > self._store.quota.event_bytes or len(events) != len(found.events):
            raise refusal("events", "is more than can wait")
        if found.closed:
            self._store.disconnect(self._client)
        elif self._client.closed:
            raise refusal("closed", "is false, but the domain has been released")
        self.error, self.events_dropped = found.error, found.events_dropped
        self._input, self._output = found.input, found.output
        self._events, self._event_bytes = events, event_bytes

    def _forget(self) -> None:
        self._client.reset()
        self._input.clear()
        self._output.clear()
        self._events.clear()
        self._event_bytes = 0

    def _event(self, path: str, token: bytes) -> None:
        self._store.work += 1
        payload = path.encode("ascii") + b"\0" + token + b"\0"
        event = encode(Message.WATCH_EVENT, 0, NO_TRANSACTION, payload)
        if event in self._events:
            return
        waiting = self._event_bytes + len(event)
        if len(payload) > PAYLOAD_MAX or waiting > self._store.quota.event_bytes:
            self.events_dropped += 1
            return
        self._events[event] = None
        self._event_bytes = waiting
        if self.on_output is not None and not self._executing:
            self.on_output()

    def _execute_one(self) -> bool:
        """Execute the next request if it is complete and the client has read everything so far."""
        if len(self._input) < HEADER.size:
            return False
        kind, req_id, tx_id, length = HEADER.unpack_from(self._input)
        if length > PAYLOAD_MAX:
            self.fail(LinkError.PROTOCOL)
            return False
        if self.has_output or len(self._input) < HEADER.size + length:
            return False
        payload = bytes(self._input[HEADER.size : HEADER.size + length])
        del self._input[: HEADER.size + length]
        self._store.work += 1
        self._executing = True
        try:
            answer = self._answer(Request(kind, req_id, tx_id, payload))
            if len(answer) > PAYLOAD_MAX:
                raise StoreError("E2BIG", f"a reply of {len(answer)} bytes")
        except StoreError as error:
            kind, answer = Message.ERROR, error.name.encode("ascii") + b"\0"
        finally:
            self._executing = False
        self._output += encode(kind, req_id, tx_id, answer)
        return True

    def _answer(self, request: Request) -> bytes:
        """Execute a request; returns the reply's payload or raises `StoreError`."""
        if request.kind in _PRIVILEGED and self.domid != DOM0:
            raise StoreError("EACCES", f"domain {self.domid} is not privileged")
        operation = _OPERATIONS.get(request.kind)
        if operation is None:
            raise StoreError("ENOSYS", f"message type {request.kind}")
        return operation(self, request)

    def _directory(self, request: Request) -> bytes:
        return _terminated(self._client.directory(request.one_string(), request.tx_id))

    def _directory_part(self, request: Request) -> bytes:
        """A list too long for one message, from a byte offset on: generation, names; an empty name ends it.

        The client starts again if the generation has changed between parts.
        """
        path, offset_text = request.two_strings()
        offset = _number(_text(offset_text), 0xFFFF_FFFF)
        names = _terminated(self._client.directory(path, request.tx_id))
        generation = b"%d\0" % self._client.generation(path, request.tx_id)
        rest = names[offset:]
        if len(generation) + len(rest) < PAYLOAD_MAX:
            return generation + rest + b"\0"
        whole = rest.rfind(b"\0", 0, PAYLOAD_MAX - len(generation)) + 1
        return generation + rest[:whole]

    def _read(self, request: Request) -> bytes:
        return self._client.read(request.one_string(), request.tx_id)

    def _get_perms(self, request: Request) -> bytes:
        permissions = self._client.permissions(request.one_string(), request.tx_id)
        return _terminated([str(entry) for entry in permissions.entries])

    def _set_perms(self, request: Request) -> bytes:
        strings = [_text(string) for string in request.strings()]
        if len(strings) < 2:
            raise StoreError("EINVAL", "a path and permissions expected")
        self._client.set_permissions(strings[0], Permissions.parse(strings[1:]), request.tx_id)
        return _OK

    def _write(self, request: Request) -> bytes:
        path, separator, value = request.payload.partition(b"\0")
        if not separator:
            raise StoreError("EINVAL", "the path has no NUL")
        self._client.write(_text(path), value, request.tx_id)
        return _OK

    def _mkdir(self, request: Request) -> bytes:
        self._client.mkdir(request.one_string(), request.tx_id)
        return _OK

    def _rm(self, request: Request) -> bytes:
        self._client.remove(request.one_string(), request.tx_id)
        return _OK

    def _watch(self, request: Request) -> bytes:
        self._client.watch(*request.two_strings())
        return _OK

    def _unwatch(self, request: Request) -> bytes:
        self._client.unwatch(*request.two_strings())
        return _OK

    def _reset_watches(self, _request: Request) -> bytes:
        self._client.reset()
        return _OK

    def _transaction_start(self, request: Request) -> bytes:
        return b"%d\0" % self._client.start(request.tx_id)

    def _transaction_end(self, request: Request) -> bytes:
        verdict = request.one_string()
        if verdict not in ("T", "F"):
            raise StoreError("EINVAL", "T or F expected")
        self._client.end(request.tx_id, commit=verdict == "T")
        return _OK

    def _get_domain_path(self, request: Request) -> bytes:
        return domain_path(request.one_domid()).encode("ascii") + b"\0"

    def _is_domain_introduced(self, request: Request) -> bytes:
        return b"T\0" if self._store.is_introduced(request.one_domid()) else b"F\0"


_OPERATIONS: Final[dict[int, Callable[[Connection, Request], bytes]]] = {
    Message.DIRECTORY: Connection._directory,
    Message.READ: Connection._read,
    Message.GET_PERMS: Connection._get_perms,
    Message.WATCH: Connection._watch,
    Message.UNWATCH: Connection._unwatch,
    Message.TRANSACTION_START: Connection._transaction_start,
    Message.TRANSACTION_END: Connection._transaction_end,
    Message.GET_DOMAIN_PATH: Connection._get_domain_path,
    Message.WRITE: Connection._write,
    Message.MKDIR: Connection._mkdir,
    Message.RM: Connection._rm,
    Message.SET_PERMS: Connection._set_perms,
    Message.IS_DOMAIN_INTRODUCED: Connection._is_domain_introduced,
    Message.RESET_WATCHES: Connection._reset_watches,
    Message.DIRECTORY_PART: Connection._directory_part,
}
"""Message type -> its execution. What is missing here is answered ENOSYS."""


def _text(raw: bytes) -> str:
    """Any bytes as text; what is not ASCII is refused later, by the rules for paths and numbers."""
    return raw.decode("latin-1")


def _number(text: str, largest: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > largest:
        raise StoreError("EINVAL", f"bad number {text[:16]!r}")
    return int(text)


def _terminated(names: list[str]) -> bytes:
    return b"".join(name.encode("ascii") + b"\0" for name in names)
