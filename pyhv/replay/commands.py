# SPDX-License-Identifier: GPL-2.0-only
"""What comes in from outside as plain data, and how it comes in again.

Each verb is a method of `pyhv.machine.Machine` that is marked `@from_outside`; its arguments are listed here
with their types, and a test holds that no verb is left out. A domain is said by its number. What a log says
may be made up by anybody: each argument has its bounds, and what the machine itself refuses is refused.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Protocol

from pyhv.abi.layout import u8, u16, u32, u64
from pyhv.cpu.registers import Registers
from pyhv.devices.console_log import ConsoleSink
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.errors import PyhvError, ReplayError
from pyhv.frozen import frozen
from pyhv.loader.image import KernelImage
from pyhv.loader.origin import Origin, fingerprint, fingerprint_of
from pyhv.machine import Machine
from pyhv.net.spec import NetSpec
from pyhv.outside import Command
from pyhv.resident import Ended
from pyhv.state import Nanoseconds, Plain, construct, entries, items, refusal, say, state, typed
from pyhv.storage.spec import DiskSpec
from pyhv.xenstore.limits import StoreError

CREATE: Final = "create"
_DOMAIN: Final = "domain"
_VERBS: Final[dict[str, dict[str, Any]]] = {
    "pause": {_DOMAIN: None},
    "unpause": {_DOMAIN: None},
    "destroy": {_DOMAIN: None},
    "resume": {_DOMAIN: None, "cancelled": bool},
    "shutdown": {_DOMAIN: None, "how": str},
    "change_uuid": {_DOMAIN: None, "new": str},
    "adjust": {_DOMAIN: None, "weight": u32 | None, "cap": u32 | None},
    "input": {_DOMAIN: None, "data": bytes},
    "stop_at": {_DOMAIN: None, "addresses": list[u64]},
    "poke": {"address": u64, "data": bytes},
    "write_store": {"path": str, "value": bytes},
    "introduce_peers": {"couples": list[Annotated[list[u16], 2]]},
    "pass_time": {"when": Nanoseconds},
    "set_registers": {_DOMAIN: None, "vcpu": u8, "registers": Registers},
    "attach_disk": {_DOMAIN: None, "spec": DiskSpec},
    "detach_disk": {_DOMAIN: None, "vdev": str},
    "attach_net": {_DOMAIN: None, "spec": NetSpec},
    "detach_net": {_DOMAIN: None, "number": u32},
    "receive_frame": {"uplink": str, "data": bytes},
}
VERBS: Final = (CREATE, *_VERBS)
"""A log has their numbers: to change the order is to change the format."""
REFUSED: Final = False
"""The answer of a command that was refused; of one that was not it is a number or None."""
_DROPPED: Final[dict[str, Callable[[int], None]]] = {"arrived": lambda _address: None}
"""Arguments that are whoever listens: on replay nobody does."""


@frozen
class CreateRecord:
    """A domain that was created: of its image and ramdisk what is needed to find them, and to know them."""

    image: bytes
    ramdisk: bytes
    """Fingerprints; empty: none."""
    cmdline: bytes
    paused: bool
    config: DomainConfig
    origin: Origin


class Cast(Protocol):
    """Who has what a log cannot hold: images, and listeners of domains that are created."""

    def find(self, record: CreateRecord) -> tuple[KernelImage, bytes]:
        """The image and the ramdisk. ReplayError: they are not there, or are others."""

    def console(self, record: CreateRecord) -> ConsoleSink:
        """Where the domain that is about to be created will print."""

    def created(self, domain: Domain, record: CreateRecord) -> None:
        """It has been."""

    def ended(self, ended: Ended) -> None:
        """A domain has ended."""


# -- saying ------------------------------------------------------------------------------------------------


class Scribe:
    """Says commands as plain data. It remembers fingerprints: many domains may have one image."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, bytes]] = {}

    def say(self, command: Command) -> Plain:
        """The arguments of a command."""
        arguments = command.arguments
        if command.verb == CREATE:
            image, ramdisk = arguments["image"], arguments["ramdisk"]
            return state(
                CreateRecord(
                    self._fingerprint(image, fingerprint),
                    self._fingerprint(ramdisk, fingerprint_of) if ramdisk else b"",
                    arguments["cmdline"],
                    arguments["paused"],
                    arguments["config"],
                    arguments["origin"] or Origin(),
                )
            )
        return [_said(name, kind, arguments[name]) for name, kind in _VERBS[command.verb].items()]

    def _fingerprint(self, thing: Any, of: Callable[[Any], bytes]) -> bytes:
        known = self._known.get(id(thing))
        if known is None or known[0] is not thing:
            known = self._known[id(thing)] = thing, of(thing)
        return known[1]


def _said(name: str, kind: Any, value: Any) -> Plain:
    if name == _DOMAIN:
        return int(value.domid)
    if name == "addresses":
        return sorted(value)
    if name == "couples":
        return [list(couple) for couple in value]
    return say(kind, value)


def answered(verb: str, answer: object) -> Plain:
    """What a command returned, as far as a replay must return the same."""
    if isinstance(answer, Exception):
        return REFUSED
    if isinstance(answer, Domain):
        return answer.domid
    return answer if verb == "input" and isinstance(answer, int) else None


# -- doing -------------------------------------------------------------------------------------------------


def perform(machine: Machine, verb: str, saved: Plain, cast: Cast) -> Plain:
    """Let a command come in again; returns what `answered` says of it. StateError: it is none."""
    act: Callable[[], object]
    if verb == CREATE:
        record = construct(CreateRecord, saved, CREATE)
        image, ramdisk = cast.find(record)

        def act() -> object:
            domain = machine.create(
                image, record.config, ramdisk=ramdisk, cmdline=record.cmdline, console=cast.console(record),
                paused=record.paused, on_end=cast.ended, origin=record.origin,
            )  # fmt: skip
            cast.created(domain, record)
            return domain
    else:
        arguments = _arguments(machine, verb, saved)

        def act() -> object:
            return getattr(machine, verb)(**arguments)

    try:
        return answered(verb, act())
    except ReplayError:
        raise  # the recording's own trouble, and no answer of the machine's
    except (PyhvError, StoreError) as refused:
        return answered(verb, refused)


def _arguments(machine: Machine, verb: str, saved: Plain) -> Mapping[str, Any]:
    forms = _VERBS.get(verb)
    if forms is None:
        raise refusal("a command", f"is {verb!r}, which is none")
    values = items(saved, verb, len(forms))
    found = {
        name: _domain(machine, value, verb) if name == _DOMAIN else typed(kind, value, f"{verb}.{name}")
        for (name, kind), value in zip(forms.items(), values, strict=True)
    }
    return {**found, **(_DROPPED if verb == "stop_at" else {})}


def _domain(machine: Machine, saved: Plain, verb: str) -> Domain:
    resident = machine.residents.get(typed(u16, saved, f"{verb}.domain"))
    if resident is None:
        raise refusal(f"{verb}.domain", f"is {saved!r}, which is not there")
    return resident.domain


def checked(verb: str, saved: Plain) -> None:
    """StateError: a command is none, whatever machine it is for."""
    if verb == CREATE:
        construct(CreateRecord, entries(saved, CREATE), CREATE)
    elif verb not in _VERBS:
        raise refusal("a command", f"is {verb!r}, which is none")
