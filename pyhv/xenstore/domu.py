# SPDX-License-Identifier: GPL-2.0-only
"""What a PV domU expects to find in the store, and how the toolstack asks it to stop.

The names are those that Xen's own toolstack writes and that kernels look for; they are specified in
docs/misc/xenstore-paths.pandoc.
Permissions follow one rule: the domain may read its home, and it owns only the leaves and directories it is
meant to write. Device nodes are the back ends' business, not known here.
"""

import re
from collections.abc import Iterator
from typing import Final

from pyhv.errors import ConfigError
from pyhv.frozen import frozen
from pyhv.xenstore.limits import DOM0, StoreError, domain_path
from pyhv.xenstore.store import Accessor, Store, Value

SHUTDOWN_REASONS: Final = ("poweroff", "reboot", "halt", "suspend")
"""What may be asked for through `control/shutdown`."""

_GUEST_LEAVES: Final = (
    "control/shutdown",
    "control/sysrq",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "device/suspend/event-channel",
)
_GUEST_DIRECTORIES: Final = ("data", "drivers", "feature", "attr", "error")


@frozen
class DomU:
    """The facts about a new domain that go into the store."""

    domid: int
    name: str
    uuid: str
    memory_kib: int
    """Memory at start and at most, KiB."""
    vcpus: int
    store_ring_ref: int
    """Frame of the xenstore page (MFN) or its grant reference, as the guest's start_info tells it."""
    store_port: int
    console_ring_ref: int
    console_port: int
    console_limit: int = 1 << 20
    """Bytes of console output that the back end keeps for a slow reader."""


def write_domu(store: Store, domu: DomU) -> None:
    """Write the tree of a new domain, all at once; what an earlier domain of this number left goes first.

    Raises `StoreError` EAGAIN only if somebody writes there at the same time.
    """
    home = domain_path(domu.domid)
    vm = f"/vm/{domu.uuid}"
    readable = ["n0", f"r{domu.domid}"]
    owned = [f"n{domu.domid}"]
    with store.transaction() as t:
        t.remove(home)
        t.mkdir(home)
        # Before anything is made below: children start with their parent's list.
        t.set_permissions(home, readable)
        for path, value in _leaves(domu, vm):
            t.write(f"{home}/{path}", value)
        _write_vm(t, domu.domid, domu.uuid, domu.name)
        for path in (*_GUEST_LEAVES, *_GUEST_DIRECTORIES):
            t.mkdir(f"{home}/{path}")
            t.set_permissions(f"{home}/{path}", owned)


def _write_vm(t: Accessor, domid: int, uuid: str, name: str) -> None:
    """What is kept of a domain by its UUID; what another one left there goes."""
    vm = f"/vm/{uuid}"
    t.remove(vm)
    t.mkdir(vm)
    t.set_permissions(vm, ["n0", f"r{domid}"])
    for path, value in (("uuid", uuid), ("name", name), ("image/ostype", "linux")):
        t.write(f"{vm}/{path}", value)


def change_uuid(store: Store, domid: int, name: str, new: str) -> None:
    """Have a domain known by another UUID: its node below /vm moves. StoreError as `write_domu`."""
    home = domain_path(domid)
    old = _vm_of(store, domid)
    with store.transaction() as t:
        if old is not None:
            t.remove(old)
        _write_vm(t, domid, new, name)
        t.write(f"{home}/vm", f"/vm/{new}")


def remove_domu(store: Store, domid: int) -> None:
    """Release a domain and remove what is kept of it outside its home: `/vm/<uuid>` and its back ends."""
    vm = _vm_of(store, domid)
    store.release(domid)
    backends = f"{domain_path(DOM0)}/backend"
    doomed = [f"{backends}/{kind}/{domid}" for kind in store.ls(backends)] if store.exists(backends) else []
    if vm is not None:
        doomed.append(vm)
    for path in doomed:
        store.remove(path)


def request_shutdown(store: Store, domid: int, reason: str) -> None:
    """Ask a domain to stop; it clears the node when it has understood, and then shuts down by hypercall.

    `reason` is one of SHUTDOWN_REASONS, else `ConfigError`. Raises `StoreError` ENOENT for an unknown domain.
    """
    if reason not in SHUTDOWN_REASONS:
        raise ConfigError(f"a domain cannot be asked to {reason!r}: use one of {', '.join(SHUTDOWN_REASONS)}")
    home = domain_path(domid)
    store.read(home)
    path = f"{home}/control/shutdown"
    if not store.exists(path):  # the guest has removed it
        store.mkdir(path)
        store.set_permissions(path, [f"n{domid}"])
    store.write(path, reason)


def shutdown_pending(store: Store, domid: int) -> str:
    """The request that the domain has not acknowledged yet, or an empty string."""
    return _text_or_none(store, f"{domain_path(domid)}/control/shutdown") or ""


def _leaves(domu: DomU, vm: str) -> Iterator[tuple[str, Value]]:
    """The nodes that domain 0 owns and the domain may read."""
    yield "vm", vm
    yield "name", domu.name
    yield "domid", domu.domid
    for cpu in range(domu.vcpus):
        yield f"cpu/{cpu}/availability", "online"
    yield "memory/static-max", domu.memory_kib
    yield "memory/target", domu.memory_kib
    yield "memory/videoram", 0
    yield "device", ""
    yield "control/platform-feature-multiprocessor-suspend", 1
    yield "control/platform-feature-xs_reset_watches", 1
    yield "store/ring-ref", domu.store_ring_ref
    yield "store/port", domu.store_port
    yield "console/backend", f"{domain_path(DOM0)}/backend/console/{domu.domid}/0"
    yield "console/backend-id", DOM0
    yield "console/ring-ref", domu.console_ring_ref
    yield "console/port", domu.console_port
    yield "console/limit", domu.console_limit
    yield "console/type", "xenconsoled"
    yield "console/output", "pty"
    yield "console/tty", ""


def _vm_of(store: Accessor, domid: int) -> str | None:
    """The node of a domain's UUID; None if its home names none. (A snapshot's file may name anything.)"""
    named = _text_or_none(store, f"{domain_path(domid)}/vm")
    return named if named is not None and re.fullmatch("/vm/[0-9A-Za-z-]{1,64}", named) else None


def _text_or_none(store: Accessor, path: str) -> str | None:
    try:
        return store.read_text(path)
    except StoreError as error:
        if error.name == "ENOENT":
            return None
        raise
