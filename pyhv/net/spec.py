# SPDX-License-Identifier: GPL-2.0-only
"""What people write of a network device: `--net`, in a few short forms and in the words of xl's `vif`.

    switch[=NAME]                                    on a switch of the machine
    user[,hostfwd=tcp:127.0.0.1:2222-:22]...         what the host reaches, by passt
    socket:PATH[,server=off]                         on a switch that also leads to QEMU at a socket
    mac=00:16:3e:01:02:03,bridge=lan,rate=10Mb/s     as in xl-network-configuration(5)

A switch is made when it is first named. Its name may say VLANs as for xl's Open vSwitch script: `lan.10`
(frames without a tag are VLAN 10, and no others pass), `lan:20:30` (with tags), `lan.10:20:30`. `hostfwd`
is QEMU's word.  Each mistake is a ConfigError of one sentence. Nothing is opened or started here.
"""

import re
from typing import Annotated, Final

from pyhv.abi.layout import u16
from pyhv.errors import ConfigError
from pyhv.frozen import frozen
from pyhv.net import limit, mac
from pyhv.net.limit import Rate
from pyhv.net.switch import EVERYTHING, MAX_VLAN, Vlans

USUAL_SWITCH: Final = "xenbr0"
"""Where a device is plugged in of which nothing is said, as with xl."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,14}", re.ASCII)
_SWITCH: Final = re.compile(r"([^.:]*)(?:\.(\d{1,5}))?((?::\d{1,5})*)", re.ASCII)
_VIF_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
_FORWARD: Final = re.compile(r"(tcp|udp|):(\[[^\]]*\]|[^:\[\]]*):(\d{1,5})-([^:]*):(\d{1,5})", re.ASCII)


@frozen
class Forward:
    """A port of the host that leads to one of the guest's."""

    protocol: str
    """tcp or udp."""
    address: str
    """The host's; empty: all that it has."""
    port: u16
    guest_port: u16


@frozen
class SocketEnd:
    """A UNIX socket that leads to another network."""

    path: str
    listens: bool
    """Whether the other side comes, or is gone to."""


@frozen
class NetSpec:
    """A network device of a guest, and what it is plugged into."""

    switch: str = USUAL_SWITCH
    """Its name; empty: none, the device has a wire of its own (`forwards`)."""
    vlans: Vlans = EVERYTHING
    mac: Annotated[bytes, 6] | None = None
    """None: one is made."""
    rate: Rate | None = None
    vifname: str = ""
    """Its port's name; empty: vifDOMID.NUMBER, as with xl."""
    forwards: tuple[Forward, ...] | None = None
    """The wire leads to passt, with these ports; None: it does not."""
    socket: SocketEnd | None = None
    """Where the switch leads besides."""


def parse(text: str) -> NetSpec:
    """The device that `text` describes. ConfigError."""
    head, *words = (word.strip() for word in text.split(","))
    if head.startswith("switch="):
        head, words = "switch", [head.replace("switch", "bridge", 1), *words]
    elif head not in ("switch", "user") and not head.startswith("socket:"):
        head, words = "", [head, *words]
    found: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f"--net {text}: {word!r} is no word of a network; write KEY=VALUE.")
        found.setdefault(key, []).append(value)
    return _Words(text, found).spec(head)


def check(spec: NetSpec) -> None:
    """Look at a device that nobody has parsed. ConfigError: it cannot be."""
    names = [spec.switch] if spec.switch or spec.forwards is None else []
    if not all(_NAME.fullmatch(name) for name in names) or not _VIF_NAME.fullmatch(spec.vifname or "x"):
        raise ConfigError(f"{spec.switch!r} or {spec.vifname!r} is no name for a switch or a device.")
    if spec.mac is not None:
        mac.parse(mac.shown(spec.mac))


class _Words:
    """Words that have been taken apart, and what they mean."""

    def __init__(self, text: str, found: dict[str, list[str]]) -> None:
        self._text = text
        self._found = found

    def spec(self, head: str) -> NetSpec:
        """The device, by how its description begins (`head`). ConfigError."""
        forwards: tuple[Forward, ...] | None = None
        end = None
        if head == "user":
            if "bridge" in self._found:
                raise self._refusal("a device of `user` has a wire of its own; leave bridge= out")
            forwards = tuple(self._forward(word) for word in self._found.pop("hostfwd", []))
        elif head.startswith("socket:"):
            end = self._socket(head.removeprefix("socket:"))
        called = self._one("bridge")
        switch, vlans = self._switch(called or (USUAL_SWITCH if forwards is None else ""))
        address, rate, vifname = self._one("mac"), self._one("rate"), self._one("vifname")
        if vifname and not _VIF_NAME.fullmatch(vifname):
            raise self._refusal(f"{vifname!r} is no name for a device: letters, digits and ._-, 15 at most")
        for key in self._found:
            raise self._refusal(f"{key!r} is not understood here; there are {', '.join(self._known(head))}")
        return NetSpec(
            switch=switch,
            vlans=vlans,
            mac=None if not address else mac.parse(address),
            rate=None if not rate else limit.parse(rate),
            vifname=vifname,
            forwards=forwards,
            socket=end,
        )

    @staticmethod
    def _known(head: str) -> list[str]:
        known = ["mac", "rate", "vifname"]
        if head == "user":
            return [*known, "hostfwd"]
        return [*known, "bridge", *(["server"] if head.startswith("socket:") else [])]

    def _one(self, key: str) -> str:
        values = self._found.pop(key, [""])
        if len(values) > 1:
            raise self._refusal(f"{key}= is there twice")
        return values[0]

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(f"--net {self._text}: {why}.")

    def _switch(self, called: str) -> tuple[str, Vlans]:
        if not called:
            return "", EVERYTHING
        form = _SWITCH.fullmatch(called)
        if form is None or not _NAME.fullmatch(form[1]):
            raise self._refusal(f"{called!r} names no switch: letters, digits, - and _, 15 at most")
        trunks = frozenset(int(number) for number in form[3].split(":")[1:])
        native = int(form[2] or 0)
        for number in (*trunks, *([native] if form[2] else [])):
            if not 0 < number <= MAX_VLAN:
                raise self._refusal(f"there is no VLAN {number}: they are 1 to {MAX_VLAN}")
        if form[2] is None and not trunks:
            return form[1], EVERYTHING
        return form[1], Vlans(native, trunks)

    def _socket(self, path: str) -> SocketEnd:
        if not path:
            raise self._refusal("say which socket, as in socket:/tmp/lan.sock")
        server = self._one("server") or "on"
        if server not in ("on", "off"):
            raise self._refusal(f"server={server} is neither on (QEMU comes) nor off (we go to QEMU)")
        return SocketEnd(path, server == "on")

    def _forward(self, word: str) -> Forward:
        form = _FORWARD.fullmatch(word)
        if form is None:
            raise self._refusal(
                f"hostfwd={word} is not of the form tcp:ADDRESS:PORT-:PORT, as in tcp:127.0.0.1:2222-:22"
            )
        protocol, address, port, guest_address, guest_port = form.groups()
        if guest_address:
            raise self._refusal(f"hostfwd={word}: leave {guest_address!r} out, the guest is found")
        address = address.strip("[]")
        if address:
            import ipaddress  # slow to import, and seldom wanted

            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise self._refusal(f"hostfwd={word}: {address!r} is no address of the host") from None
        for number in (int(port), int(guest_port)):
            if not 0 < number < 1 << 16:
                raise self._refusal(f"hostfwd={word}: there is no port {number}")
        return Forward(protocol or "tcp", address, int(port), int(guest_port))
