# SPDX-License-Identifier: GPL-2.0-only
"""Event channels: a domain's ports, what each is bound to, and where a notification goes.

The operations, their structures and states are those of the public header `event_channel.h`.

    FREE ──alloc_unbound──► UNBOUND ◄──the peer closes── INTERDOMAIN ◄──► INTERDOMAIN (the peer's port)
      │                        └──── the peer binds it ──────▲   ▲
      ├──bind_interdomain (to a port that was offered) ──────────┘
      ├──bind_virq──► VIRQ         raised by the hypervisor
      └──bind_ipi───► IPI          raised by the domain itself; `close` leads back to FREE from everywhere

This module knows no guest memory (`PendingBits` keeps what is pending), no vCPU states (`wake` and
`port_became_pending` are told) and no hypercall buffers: arguments are numbers, refusals are `XenError`.
A domain begins with 2-level delivery; init_control switches it to FIFO, and only reset leads back.
Back ends that live in the hypervisor have ports of domain 0, which name them: `device_event` is told the name
in the place of an upcall. Every number is a guest's and is checked here.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, NoReturn

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.layout import u8, u16, u32
from pyhv.abi.numbers import NR_VIRQS, PortState, Virq
from pyhv.abi.shared import FIFO_PORTS
from pyhv.address import Mfn
from pyhv.clock import STEPS_A_LOOK
from pyhv.errors import XenError
from pyhv.events.delivery import Effect, PendingBits
from pyhv.events.fifo import Fifo, check_control_block
from pyhv.frozen import frozen
from pyhv.shared_page import SharedPage
from pyhv.state import Plain, cache, entries, refusal, restore, say, typed

PER_VCPU_VIRQS: Final = frozenset({Virq.TIMER, Virq.DEBUG, Virq.XENOPROF, Virq.XENPMU})
"""VIRQs that each vCPU binds for itself, and that stay on it."""
PER_DOMAIN_VIRQS: Final = frozenset({Virq.ARGO})
"""VIRQs that every domain may bind once, through vCPU 0."""
DEFAULT_MAX_PORT: Final = 1023
"""Highest port of a domain unless its configuration says more."""
NR_PIRQS: Final = 256
"""Physical interrupt numbers below this exist, but none is a plain domain's."""


_NOTHING, _NEWLY_PENDING, _UPCALL = Effect.NOTHING, Effect.NEWLY_PENDING, Effect.UPCALL


@frozen
class PortStatus:
    """EVTCHNOP_status' answer. Fields that the state has no use for are 0."""

    state: PortState
    vcpu: int = 0
    remote_dom: int = 0
    remote_port: int = 0
    virq: int = 0


@frozen
class DeviceName:
    """A back end in the hypervisor: the device's kind, its guest, and which one of those it is."""

    kind: str
    domid: u16
    handle: u32 = 0

    def __hash__(self) -> int:
        """That of its fields; the dataclass' own takes three times as long, and each notification asks."""
        return hash((self.kind, self.domid, self.handle))


@dataclass(slots=True, eq=False)
class _Port:
    """A port that is not free."""

    state: PortState
    vcpu: u16 = 0
    remote_dom: u16 = 0
    """UNBOUND: who may bind it. INTERDOMAIN: the peer's domain."""
    peer: "EventChannels | None" = cache("found by `remote_dom`", default=None)
    peer_port: u32 = 0
    virq: u8 = 0
    device: DeviceName | None = None
    """The back end that hears of it, of domain 0."""

    @property
    def virq_key(self) -> tuple[int, int]:
        """A VIRQ's place among those that are bound: those that are not per vCPU are vCPU 0's."""
        return self.vcpu if self.virq in PER_VCPU_VIRQS else 0, self.virq


class EventChannels:
    """One domain's event channels.

    `lookup` finds another domain's channels by domid (this one's included); None if there is no such
    domain. `wake(vcpu)` is called when a vCPU has got an upcall to take; `port_became_pending(port)`
    whenever a pending bit went from 0 to 1, for those who poll. `max_port` is the highest port, further
    limited by the layout: 2-level has `width`² ports, FIFO 2^17. `drop_page(page)` drops the reference that
    the caller of `init_control` or `expand_array` has taken to that page; `find_page` has the page of a
    frame, for state that was saved. `post(act, port)` does what comes from other domains, now or before this
    one runs on. `privileged` may act for other domains and own the global VIRQs.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("domid", "vcpu_count", "max_port", "privileged"), "configured"),
        **dict.fromkeys(("_lookup", "_wake", "_port_became_pending", "_drop_page", "_find_page"), "given"),
        **dict.fromkeys(("_device_event", "_post"), "given"),
        **dict.fromkeys(("pending", "_two_level", "_two_level_limit", "limit"), "follows from `fifo`"),
        **dict.fromkeys(("_virqs", "_closed"), "follows from the ports"),
    }

    def __init__(
        self,
        domid: int,
        vcpu_count: int,
        *,
        lookup: "Callable[[int], EventChannels | None]",
        pending: PendingBits,
        wake: Callable[[int], None],
        port_became_pending: Callable[[int], None],
        max_port: int = DEFAULT_MAX_PORT,
        width: int = 64,
        privileged: bool = False,
        drop_page: Callable[[SharedPage], None] = lambda _page: None,
        find_page: Callable[[Mfn], SharedPage | None] = lambda _mfn: None,
        device_event: Callable[[DeviceName], None] = lambda _name: None,
        post: Callable[[Callable[[int], None], int], None] = lambda act, port: act(port),
    ) -> None:
        self.domid = domid
        self.vcpu_count = vcpu_count
        self.pending = pending
        self.fifo: Fifo | None = None
        """`pending`, when the domain has chosen FIFO delivery."""
        self.max_port = max_port
        self.limit = min(max_port + 1, width * width)
        """Ports 1..limit-1 exist."""
        self.privileged = privileged
        self.dying = False
        self._lookup = lookup
        self._wake = wake
        self._port_became_pending = port_became_pending
        self._drop_page, self._find_page = drop_page, find_page
        self._device_event = device_event
        self._post = post
        self._two_level, self._two_level_limit = pending, self.limit
        self._ports: dict[int, _Port] = {}
        self._virqs: dict[tuple[int, int], int] = {}
        """(vcpu, virq) → port; VIRQs that are not per vCPU are found under vCPU 0."""
        self._closed: list[int] = []
        """Heap of ports below `_unused` that are free again."""
        self._unused = 1

    # ---- binding

    def alloc_unbound(self, dom: int, remote_dom: int) -> int:
        """EVTCHNOP_alloc_unbound: a new port of `dom` that `remote_dom` may bind.

        ESRCH, EPERM: `dom` is unknown, or not the caller. ENOSPC: no free port.
        """
        owner = self._target(dom)
        remote = self.domid if remote_dom == DOMID_SELF else remote_dom
        return owner._allocate(_Port(PortState.UNBOUND, remote_dom=remote))

    def bind_interdomain(self, remote_dom: int, remote_port: int) -> int:
        """EVTCHNOP_bind_interdomain: connect a new port to one that was offered; it starts pending.

        ESRCH: no such domain. ENOSPC: no free port. EINVAL: the remote port was not offered to this domain.
        """
        port = self._connect(remote_dom, remote_port, None)
        # A notification may have been sent while nobody was connected: look once.
        self._set_pending(port)
        return port

    def bind_device(self, device: DeviceName, remote_port: int) -> int:
        """`bind_interdomain` for a back end inside the hypervisor: `device_event` is told of notifications.

        That is at once, inside the sender's hypercall, and must not wait. It is not called for the binding
        itself: a back end looks at its ring once when it has connected. A peer that closes and binds anew
        finds the same device.
        """
        return self._connect(device.domid, remote_port, device)

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """EVTCHNOP_bind_virq: a new port on which the hypervisor raises `virq`.

        EINVAL: no such VIRQ, or one that is not per vCPU on another vCPU than 0. ENOENT: no such vCPU.
        EBUSY: a global VIRQ, which is the privileged domain's. EEXIST: bound already. ENOSPC: no free port.
        """
        if not 0 <= virq < NR_VIRQS:
            raise XenError(Errno.EINVAL, f"VIRQ {virq} does not exist")
        if virq not in PER_VCPU_VIRQS and vcpu != 0:
            raise XenError(Errno.EINVAL, f"VIRQ {virq} is not per vCPU: it binds through vCPU 0, not {vcpu}")
        self._check_vcpu(vcpu)
        if virq not in PER_VCPU_VIRQS | PER_DOMAIN_VIRQS and not self.privileged:
            raise XenError(Errno.EBUSY, f"VIRQ {virq} is the privileged domain's")
        if (vcpu, virq) in self._virqs:
            raise XenError(Errno.EEXIST, f"VIRQ {virq} is bound on vCPU {vcpu} already")
        port = self._allocate(_Port(PortState.VIRQ, vcpu=vcpu, virq=virq))
        self._virqs[vcpu, virq] = port
        return port

    def bind_ipi(self, vcpu: int) -> int:
        """EVTCHNOP_bind_ipi: a new port that the domain sends to its own `vcpu`. ENOENT, ENOSPC."""
        self._check_vcpu(vcpu)
        return self._allocate(_Port(PortState.IPI, vcpu=vcpu))

    def bind_pirq(self, pirq: int) -> NoReturn:
        """EVTCHNOP_bind_pirq: refused, since no domain owns a device. EINVAL: no such PIRQ; else EPERM."""
        if not 0 <= pirq < NR_PIRQS:
            raise XenError(Errno.EINVAL, f"physical interrupt {pirq} does not exist")
        raise XenError(Errno.EPERM, f"physical interrupt {pirq} was not given to domain {self.domid}")

    def close(self, port: int) -> None:
        """EVTCHNOP_close: free a port; a connected peer is unbound again, offered to this domain. EINVAL."""
        entry = self._bound(port)
        del self._ports[port]
        heapq.heappush(self._closed, port)
        self.pending.clear_pending(port)
        if entry.state == PortState.VIRQ:
            del self._virqs[entry.virq_key]
        if entry.peer is not None:
            # Peers are connected and parted together, so the other entry is there. Its `remote_dom` already
            # names this domain, to which it is now offered again.
            remote = entry.peer._ports[entry.peer_port]
            remote.state = PortState.UNBOUND
            remote.peer = None
            remote.peer_port = 0

    def reset(self, dom: int, preempted: Callable[[int], bool] = lambda _steps: False) -> bool:
        """EVTCHNOP_reset: close every port of `dom`, and have it use 2-level delivery again.

        ESRCH, EPERM: unknown, or not the caller. `preempted(steps)` is asked now and then whether to give
        way: then the result is False, and the caller shall call again.
        """
        owner = self._target(dom)
        for step, port in enumerate(sorted(owner._ports), 1):
            owner.close(port)
            if step % STEPS_A_LOOK == 0 and preempted(STEPS_A_LOOK):
                return False
        owner._leave_fifo()
        return True

    def destroy(self) -> None:
        """The domain dies: close every port, and open none again."""
        self.dying = True
        for port in sorted(self._ports):
            self.close(port)
        self._leave_fifo()

    # ---- notification

    def send(self, port: int) -> None:
        """EVTCHNOP_send: notify whoever is at the other end; without effect on an unbound port.

        EINVAL: no such port, or one that only the hypervisor raises.
        """
        entry = self._bound(port)
        if entry.peer is not None:  # INTERDOMAIN: no other port has one
            entry.peer._post(entry.peer._arrive, entry.peer_port)
        elif entry.state == PortState.IPI:
            self._set_pending(port)
        elif entry.state != PortState.UNBOUND:
            raise XenError(
                Errno.EINVAL, f"port {port} is a {entry.state.name}: only the hypervisor raises it"
            )

    def raise_virq(self, virq: int, vcpu: int = 0) -> bool:
        """Raise a virtual interrupt from inside the hypervisor; False if it is not bound, and so dropped."""
        port = self._virqs.get((vcpu if virq in PER_VCPU_VIRQS else 0, virq))
        if port is None:
            return False
        self._set_pending(port)
        return True

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: clear the port's mask, and deliver what it held back. EINVAL: no such port.

        On a free port it has no effect.
        """
        self._check_port(port)
        entry = self._ports.get(port)
        if entry is not None and self.pending.unmask(port, entry.vcpu) is not _NOTHING:
            self._wake(entry.vcpu)

    def interpose(self, allow: Callable[[int], bool] | None) -> None:
        """Have `allow(port)` decide of each event that is about to arrive here; one that it refuses is lost.

        None: no longer. For tests of guests; while nobody decides, nobody is asked.
        """
        vars(self).pop("_set_pending", None)
        if allow is not None:
            vars(self)["_set_pending"] = lambda port: self.arrive(port) if allow(port) else None

    def arrive(self, port: int) -> None:
        """An event arrives now that was kept back; the port may have been closed meanwhile."""
        if port in self._ports:
            EventChannels._set_pending(self, port)

    # ---- settings and questions

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """EVTCHNOP_bind_vcpu: choose the vCPU that is notified; it applies from the next event on.

        ENOENT: no such vCPU. EINVAL: no such port, or one that is bound to its vCPU by nature.
        """
        self._check_vcpu(vcpu)
        entry = self._bound(port)
        if entry.state == PortState.IPI or (entry.state == PortState.VIRQ and entry.virq in PER_VCPU_VIRQS):
            raise XenError(Errno.EINVAL, f"port {port} is vCPU {entry.vcpu}'s own and cannot be moved")
        entry.vcpu = vcpu

    def status(self, dom: int, port: int) -> PortStatus:
        """EVTCHNOP_status: what a port is. ESRCH, EPERM: as for `reset`. EINVAL: no such port."""
        owner = self._target(dom)
        owner._check_port(port)
        entry = owner._ports.get(port)
        if entry is None:
            return PortStatus(PortState.FREE)
        return PortStatus(entry.state, entry.vcpu, entry.remote_dom, entry.peer_port, entry.virq)

    def is_pending(self, port: int) -> bool:
        """For SCHEDOP_poll: say whether a port has an event, masked or not. EINVAL: no such port, or free."""
        self._bound(port)
        return self.pending.is_pending(port)

    def ports(self) -> dict[int, PortStatus]:
        """Every port that is not free, in ascending order."""
        return {port: self.status(DOMID_SELF, port) for port in sorted(self._ports)}

    def devices(self) -> dict[int, DeviceName]:
        """Ports whose notifications a back end hears, and its name."""
        return {port: entry.device for port, entry in self._ports.items() if entry.device is not None}

    # ---- FIFO delivery

    def check_control(self, vcpu: int, offset: int) -> None:
        """EVTCHNOP_init_control's own checks, before a reference to the control block's page is taken.

        ENOENT: no such vCPU. EINVAL: a block cannot lie there, or the vCPU has one.
        """
        self._check_vcpu(vcpu)
        check_control_block(offset)
        if self.fifo is not None:
            self.fifo.check_vcpu(vcpu)

    def init_control(self, vcpu: int, page: SharedPage, offset: int) -> None:
        """EVTCHNOP_init_control, checked: give `vcpu` its control block, for good.

        The first one switches the domain to FIFO delivery, with more ports, all at the default priority; what
        is pending stays so until the event array can show it.
        """
        if self.fifo is None:
            two_level = self._two_level
            early = [port for port in self._ports if two_level.is_pending(port)]
            self.pending = self.fifo = Fifo(self.vcpu_count, two_level.mark_upcall, early, self._find_page)
            self.limit = min(self.max_port + 1, FIFO_PORTS)
        self.fifo.add_control_block(vcpu, page, offset)

    def check_expansion(self) -> None:
        """EVTCHNOP_expand_array's own checks: EOPNOTSUPP with 2-level delivery, ENOSPC if it is complete."""
        if self.fifo is None:
            raise XenError(Errno.EOPNOTSUPP, "the domain does not use FIFO event channels")
        self.fifo.check_array()

    def expand_array(self, page: SharedPage) -> None:
        """EVTCHNOP_expand_array, checked: add a page to the event array, and deliver what waits for it."""
        assert self.fifo is not None
        for port in self.fifo.add_array_page(page):
            self._set_pending(port)

    def set_priority(self, port: int, priority: int) -> None:
        """EVTCHNOP_set_priority: the queue for the port's next events, 0 (first) to 15.

        EINVAL: no such port or priority. ENOSYS: 2-level delivery has none. EACCES: the port is free.
        """
        self._check_port(port)
        if self.fifo is None:
            raise XenError(Errno.ENOSYS, "2-level event channels have no priorities")
        if port not in self._ports:
            raise XenError(Errno.EACCES, f"port {port} is free")
        self.fifo.set_priority(port, priority)

    def shared_frames(self) -> list[Mfn]:
        """The frames of the FIFO pages, each as often as it is referred to."""
        return [page.mfn for page in self.fifo.pages()] if self.fifo is not None else []

    def _leave_fifo(self) -> None:
        """All ports are closed: back to 2-level delivery, and to the first port."""
        fifo = self.fifo
        self.pending, self.fifo, self.limit = self._two_level, None, self._two_level_limit
        self._closed, self._unused = [], 1
        if fifo is not None:
            for page in fifo.pages():
                self._drop_page(page)

    # ---- state

    def state(self) -> dict[str, Plain]:
        """Ports, and FIFO delivery if it was chosen. Peers and back ends are named."""
        return {
            "ports": say(dict[u32, _Port], self._ports),
            "unused": self._unused,
            "dying": self.dying,
            "fifo": None if self.fifo is None else self.fifo.state(),
        }

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved; StateError. Peers' channels are there; `unmatched` looks at both ends."""
        found = entries(dict(saved), "", self.state())
        fifo = None
        if found["fifo"] is not None:
            fifo = Fifo(self.vcpu_count, self._two_level.mark_upcall, (), self._find_page)
            restore(fifo, found["fifo"], "fifo")
        limit = self._two_level_limit if fifo is None else min(self.max_port + 1, FIFO_PORTS)
        ports = typed(dict[u32, _Port], found["ports"], "ports")
        unused = typed(u32, found["unused"], "unused")
        if not max(ports, default=0) < unused <= limit or 0 in ports:
            raise refusal("unused", f"is {unused}, which does not go with the ports and their limit, {limit}")
        virqs: dict[tuple[int, int], int] = {}
        for port, entry in ports.items():
            self._check_saved(f"ports.{port}", entry)
            if entry.state == PortState.VIRQ and virqs.setdefault(entry.virq_key, port) != port:
                raise refusal(f"ports.{port}", f"is bound to VIRQ {entry.virq}, as another one is")
        self.dying = typed(bool, found["dying"], "dying")
        self.fifo, self.pending, self.limit = fifo, fifo or self._two_level, limit
        self._ports, self._virqs, self._unused = ports, virqs, unused
        self._closed = [port for port in range(1, unused) if port not in ports]

    def _check_saved(self, where: str, entry: _Port) -> None:
        """A port's state is possible; find its peer's channels."""
        if entry.vcpu >= self.vcpu_count or entry.virq >= NR_VIRQS:
            raise refusal(where, "is for a vCPU or a VIRQ that does not exist")
        if entry.state not in (PortState.UNBOUND, PortState.INTERDOMAIN, PortState.VIRQ, PortState.IPI):
            raise refusal(where, f"is {entry.state.name}")
        if entry.state == PortState.INTERDOMAIN:
            entry.peer = self if entry.remote_dom == self.domid else self._lookup(entry.remote_dom)
            if entry.peer is None:
                raise refusal(where, f"is connected to domain {entry.remote_dom}, which does not exist")

    def unmatched(self) -> list[int]:
        """Connected ports whose peer is not connected to them: there are none, unless saved state says so."""
        found = []
        for port, entry in self._ports.items():
            if entry.peer is not None:
                other = entry.peer._ports.get(entry.peer_port)
                if other is None or other.peer is not self or other.peer_port != port:
                    found.append(port)
        return found

    # ---- inside

    def _target(self, dom: int) -> "EventChannels":
        """The channels that an operation "for `dom`" acts on."""
        if dom in (DOMID_SELF, self.domid):
            return self
        other = self._lookup(dom)
        if other is None:
            raise XenError(Errno.ESRCH, f"there is no domain {dom}")
        if not self.privileged:
            raise XenError(Errno.EPERM, f"domain {self.domid} may not act for domain {dom}")
        return other

    def _check_port(self, port: int) -> None:
        if not 1 <= port < self.limit:
            raise XenError(Errno.EINVAL, f"port {port} is not one of 1..{self.limit - 1}")

    def _bound(self, port: int) -> _Port:
        """The entry of a port that must exist and not be free."""
        entry = self._ports.get(port)
        if entry is None:
            self._check_port(port)
            raise XenError(Errno.EINVAL, f"port {port} is free")
        return entry

    def _check_vcpu(self, vcpu: int) -> None:
        if not 0 <= vcpu < self.vcpu_count:
            raise XenError(Errno.ENOENT, f"domain {self.domid} has no vCPU {vcpu}")

    def _free_port(self) -> int:
        """The lowest free port, which stays free. EINVAL: the domain is dying. ENOSPC: there is none.

        With FIFO delivery a port is not free before the guest has taken its last event off the queue.
        """
        if self.dying:
            raise XenError(Errno.EINVAL, f"domain {self.domid} is dying")
        if self.fifo is None:
            port = self._closed[0] if self._closed else self._unused
        else:
            port = next((port for port in sorted(self._closed) if not self.fifo.is_busy(port)), self._unused)
            while port < self.limit and port >= self._unused and self.fifo.is_busy(port):
                port += 1
        if port >= self.limit:
            raise XenError(Errno.ENOSPC, f"all {self.limit - 1} ports of domain {self.domid} are in use")
        return port

    def _open(self, port: int, entry: _Port) -> int:
        """Take the port that `_free_port` has found."""
        if self._closed and self._closed[0] == port:
            heapq.heappop(self._closed)
        elif port < self._unused:
            self._closed.remove(port)
            heapq.heapify(self._closed)
        else:
            self._closed.extend(range(self._unused, port))  # busy ones; they are the heap's highest
            self._unused = port + 1
        self._ports[port] = entry
        return port

    def _allocate(self, entry: _Port) -> int:
        """Give `entry` the lowest free port."""
        return self._open(self._free_port(), entry)

    def _connect(self, remote_dom: int, remote_port: int, device: DeviceName | None) -> int:
        """Make a new port and an offered one each other's peers."""
        domid = self.domid if remote_dom == DOMID_SELF else remote_dom
        remote = self if domid == self.domid else self._lookup(domid)
        if remote is None:
            raise XenError(Errno.ESRCH, f"there is no domain {domid}")
        port = self._free_port()
        offered = remote._ports.get(remote_port)
        if offered is None or offered.state != PortState.UNBOUND or offered.remote_dom != self.domid:
            raise XenError(
                Errno.EINVAL, f"domain {domid} does not offer its port {remote_port} to domain {self.domid}"
            )
        entry = _Port(PortState.INTERDOMAIN, remote_dom=domid, peer_port=remote_port)
        entry.peer = remote
        entry.device = device
        self._open(port, entry)
        offered.state = PortState.INTERDOMAIN
        offered.peer = self
        offered.peer_port = port
        return port

    def _arrive(self, port: int) -> None:
        """A peer has sent; the port may have been closed while that waited."""
        if port in self._ports:
            self._set_pending(port)

    def _set_pending(self, port: int) -> None:
        """An event has arrived on a port of this domain."""
        entry = self._ports[port]
        if entry.device is not None:
            self._device_event(entry.device)
            return
        effect = self.pending.set_pending(port, entry.vcpu)
        if effect is _NOTHING:
            return
        if effect is not _NEWLY_PENDING:
            self._wake(entry.vcpu)
        if effect is not _UPCALL:
            self._port_became_pending(port)
