# SPDX-License-Identifier: GPL-2.0-only
"""The state of a whole machine as plain data, and a machine that goes on from it.

Memory is not in it: that is an image (`cpu/layers.py`), which belongs to the state as a page table belongs to
CR3. `say` may be called whenever the machine does not run, also when a turn is paused: the vCPU that was on
the processor goes on with the time that it had left.

Restoring has one way for all cases. What the machine lacks of what was saved - domains, that is - is made
anew, empty, with an engine; what it has too much is let go; then memory becomes that of the image, and each
object takes over what it said. So a machine is put back, copied, and rebuilt in another process by the same
code. Engines that exist keep what they have translated of frames that have not changed.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pyhv.abi.layout import u8, u16, u32, u64
from pyhv.address import Mfn
from pyhv.board import frames_for
from pyhv.cpu.layers import Image
from pyhv.devices.drive import Drive
from pyhv.devices.toolstack import SinkFor
from pyhv.domain.config import DomainConfig
from pyhv.errors import SnapshotError
from pyhv.events.channels import DeviceName
from pyhv.frozen import frozen
from pyhv.hypercalls.context import WATCHDOGS
from pyhv.machine import Machine, MachineConfig
from pyhv.mmu.physical import FramePage
from pyhv.pcpu import Turn
from pyhv.resident import Counts, Resident
from pyhv.sched import SCHEDULERS
from pyhv.services import Timer
from pyhv.state import Nanoseconds, Plain, Said, construct, entries, items, refusal, restore, state

_WHOLE: Final = dict.fromkeys(
    ("config", "clock", "frames", "physical", "m2p", "residents", "timers", "scheduler", "dom0",
     "domains", "turn")
)  # fmt: skip


@frozen
class ConfigRecord:
    """What of a machine's configuration its guests can feel."""

    memory_pages: u32
    max_domains: u16
    scheduler: str
    virtual_time: bool
    seed: str

    def seed_number(self) -> int:
        """The seed. StateError: it is none."""
        if not re.fullmatch("[0-9]{1,400}", self.seed):
            raise refusal("config.seed", "is no number")
        return int(self.seed)


@frozen
class DomainRecord:
    """A domain as plain data: what it takes to make it, and what it says of itself."""

    domid: u16
    width: u8
    config: DomainConfig
    shared_info: u32
    domain: Said
    vcpus: list[Said]
    debug_unit: Said
    """What a tuned engine stops at; None: it is none."""
    counts: Counts


@frozen
class _TurnRecord:
    domid: u16
    vcpu: u8
    start: Nanoseconds
    deadline: Nanoseconds
    deliverable: bool
    counted_to: u64 | None


# -- saying ------------------------------------------------------------------------------------------------


def say(machine: Machine) -> dict[str, Plain]:
    """All that a guest can see or feel of a machine, but for memory. SnapshotError: it cannot be said."""
    turn = machine.pcpu.turn
    return {
        "config": state(configuration(machine)),
        "clock": machine.clock.state(),
        **{name: state(part) for name, part in _machine_parts(machine).items()},
        "dom0": machine.dom0.state(),
        "domains": [state(_record(resident)) for resident in machine.residents],
        "turn": None if turn is None else _said_turn(turn),
    }


def _said_turn(turn: Turn) -> Plain:
    return state(_TurnRecord(*turn.vcpu.id, turn.start, turn.deadline, turn.deliverable, turn.counted_to))


def configuration(machine: Machine) -> ConfigRecord:
    """What of a machine's configuration its guests can feel. SnapshotError: it cannot be said."""
    config = machine.config
    names = [name for name, kind in SCHEDULERS.items() if type(machine.scheduler) is kind]
    if not names:
        raise SnapshotError("a machine with a scheduler that was made for it cannot be saved")
    return ConfigRecord(
        config.memory_pages, config.max_domains, names[0], machine.clock.counted, str(config.seed)
    )


def _record(resident: Resident) -> DomainRecord:
    domain = resident.domain
    return DomainRecord(
        domid=domain.domid,
        width=domain.width,
        config=domain.config,
        shared_info=domain.shared_info.mfn,
        domain=state(domain),
        vcpus=[state(vcpu) for vcpu in domain.vcpus],
        debug_unit=None if domain.engine.debug_unit is None else domain.engine.debug_unit.state(),
        counts=resident.counts(),
    )


# -- restoring ---------------------------------------------------------------------------------------------


def rebuild(
    saved: Plain,
    image: Image,
    sink_for: SinkFor,
    *,
    trusted: bool,
    drives: Mapping[DeviceName, Drive] = MappingProxyType({}),
    tuned: bool = True,
    measure: bool = False,
) -> Machine:
    """A machine of its own that goes on from what was saved; `drives` are those that need not be opened.

    StateError, ConfigError: it cannot be; nothing is left then.
    """
    wanted = construct(ConfigRecord, entries(saved, "", _WHOLE)["config"], "config")
    seed = wanted.seed_number()
    if frames_for(wanted.memory_pages, wanted.max_domains) != image.frames:  # before so much is asked for
        raise refusal("config.memory_pages", f"does not fit to {image.frames} frames of memory")
    machine = Machine(
        MachineConfig(
            wanted.memory_pages,
            max_domains=wanted.max_domains,
            scheduler=wanted.scheduler,
            virtual_time=wanted.virtual_time,
            seed=seed,
            tuned=tuned,
            measure=measure,
        )
    )
    machine.dom0.at_hand.update(drives)
    try:
        put_back(machine, saved, image, sink_for, trusted=trusted)
    except BaseException:
        machine.close()
        raise
    return machine


def put_back(machine: Machine, saved: Plain, image: Image, sink_for: SinkFor, *, trusted: bool) -> None:
    """Make a machine what it was, or another one was; domains that it does not have get a sink.

    What is not `trusted`, because it comes from a file, is audited as a whole: 9 ms for a Linux guest.

    StateError, ConfigError: what was saved does not fit to this machine, or cannot be. Then the machine is of
    no use any more and should be closed.
    """
    found = entries(saved, "", _WHOLE)
    if image.frames != machine.ram.frames:
        raise refusal("memory", f"has {image.frames} frames, the machine has {machine.ram.frames}")
    listed = items(found["domains"], "domains")
    records = [construct(DomainRecord, record, f"domains.{at}") for at, record in enumerate(listed)]
    machine.pcpu.put_back(None)
    # Engines are made for a TSC that exits or does not.
    restore(machine.clock, found["clock"], "clock")
    _make_residents(machine, records)
    _put_memory_back(machine, image)
    for name, part in _machine_parts(machine).items():
        restore(part, found[name], name)
    for record in records:
        _restore_domain(machine.residents[record.domid], record)
    domids = {record.domid for record in records}
    machine.dom0.put_back(found["dom0"], domids, lambda mfn: FramePage(machine.physical, mfn), sink_for)
    turn = _turn(machine, found["turn"])
    if not machine.clock.agrees(paused=turn is not None):
        raise refusal("turn", "is not what the clock says of it")
    machine.pcpu.put_back(turn)
    _check_timers(machine)
    for resident in machine.residents:
        resident.domain.renew_time(machine.pcpu.running)
    wrong = [] if trusted else machine.audit()
    if wrong:
        raise refusal("memory", f"is not sound: {wrong[0]}")


def _make_residents(machine: Machine, records: list[DomainRecord]) -> None:
    """Let domains go that were not there, and make those that are not here; none of them holds anything."""
    wanted = {record.domid: record for record in records}
    if len(wanted) != len(records):
        raise refusal("domains", "has one domid twice")
    for resident in list(machine.residents):
        record = wanted.get(resident.domain.domid)
        if record is None or not _is_same(resident, record):
            machine.builder.let_go(resident)
    for record in records:
        if record.width not in (32, 64):
            raise refusal(f"domain {record.domid}", f"is of {record.width} bits, which is no domain's width")
        if record.shared_info >= machine.ram.frames:
            raise refusal(f"domain {record.domid}", "has its shared_info beyond memory")
        if machine.residents.get(record.domid) is None:
            machine.show_exits_of(
                machine.builder.rebuild(record.domid, record.width, record.config, Mfn(record.shared_info))
            )
    machine.residents.put_in_order(list(wanted))


def _is_same(resident: Resident, record: DomainRecord) -> bool:
    """Whether an object that is there can become what was saved."""
    domain = resident.domain
    return (domain.width, domain.config, domain.shared_info.mfn) == (
        record.width, record.config, record.shared_info
    )  # fmt: skip


def _put_memory_back(machine: Machine, image: Image) -> None:
    """Memory, and what engines know of it."""
    for resident in machine.residents:
        for vcpu in resident.domain.vcpus:
            vcpu.context.rest()
    machine.physical.code_gone(machine.ram.revert(image))
    for resident in machine.residents:
        resident.domain.engine.flush_tlb()


def _machine_parts(machine: Machine) -> dict[str, Any]:
    """What says its own state and is not a domain's, in the order in which it is restored after the clock."""
    return {
        "frames": machine.frames,
        "physical": machine.physical,
        "m2p": machine.board.m2p,
        "residents": machine.residents,
        "timers": machine.services.timers,
        "scheduler": machine.scheduler,
    }


def _restore_domain(resident: Resident, record: DomainRecord) -> None:
    domain, where = resident.domain, f"domain {record.domid}"
    restore(domain, record.domain, where)
    if len(record.vcpus) != len(domain.vcpus):
        raise refusal(where, f"has {len(record.vcpus)} vCPUs, its configuration {len(domain.vcpus)}")
    for vcpu, saved in zip(domain.vcpus, record.vcpus, strict=True):
        restore(vcpu, saved, f"{where}: {vcpu.name}")
    if domain.suspender is not None and domain.suspender >= len(domain.vcpus):
        raise refusal(where, f"was suspended by vCPU {domain.suspender}, which it does not have")
    if domain.engine.debug_unit is not None and record.debug_unit is not None:
        restore(domain.engine.debug_unit, record.debug_unit, f"{where}: debug_unit")
    resident.count_on(record.counts)
    resident.dispatcher.begin_anew()


def _check_timers(machine: Machine) -> None:
    """StateError: a timer is for something that is not there."""
    for kind, domid, number in machine.services.timers:
        resident = machine.residents.get(domid)
        most = 0
        if resident is not None:
            of_ports, of_vcpus = resident.domain.events.limit, len(resident.domain.vcpus)
            most = {Timer.WATCHDOG: WATCHDOGS, Timer.EVENT: of_ports}.get(kind, of_vcpus)
        if number >= most:
            raise refusal("timers", f"has one of the kind {kind.name} for {number} of domain {domid}")


def _turn(machine: Machine, saved: Plain) -> Turn | None:
    """The turn that was paused. Its vCPU is put on its engine when it goes on."""
    if saved is None:
        return None
    record = construct(_TurnRecord, saved, "turn")
    resident = machine.residents.get(record.domid)
    if resident is None or record.vcpu >= len(resident.domain.vcpus):
        raise refusal("turn", "is of a vCPU that is not there")
    vcpu = resident.domain.vcpus[record.vcpu]
    if vcpu.context.empty or not resident.domain.alive:
        raise refusal("turn", "is of a vCPU that cannot run")
    return Turn(resident, vcpu, record.start, record.deadline, record.deliverable, record.counted_to)
