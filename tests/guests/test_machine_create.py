# SPDX-License-Identifier: GPL-2.0-only
"""Creating a domain: all or nothing, and what was asked for."""

import dataclasses
import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from pyhv import domain_builder
from pyhv.devices.backend import Backend
from pyhv.domain.config import DomainConfig
from pyhv.errors import ConfigError, ImageError
from pyhv.events.channels import EventChannels
from pyhv.grants.table import GrantTable
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.machine import Machine
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.tables import PageTables
from pyhv.sched.base import SchedParameters
from pyhv.sched.credit import Credit
from pyhv.testing.guest_machine import Sink, machine
from pyhv.until import Outcome
from pyhv.xenstore.store import Store

PAGES = 1024
HELLO = load_image(build_builtin("hello"), "hello")
HELLO32 = load_image(build_builtin("hello32"), "hello32")
CONFIG = DomainConfig("hello", PAGES)


@pytest.fixture
def made() -> Iterator[Machine]:
    with machine(pages=3 * PAGES) as built:
        built.create(HELLO, DomainConfig("neighbour", PAGES), console=Sink())
        yield built


class Whole:
    """What a failed creation must leave as it was."""

    def __init__(self, made: Machine) -> None:
        frames = made.frames
        self.free = frames.free_count
        self.columns = [
            column.copy()
            for column in (
                frames.owner_np,
                frames.refs_np,
                frames.type_count_np,
                frames.pinned_np,
                frames.m2p_np,
            )
        ]
        self.store = made.store.dump()
        self.ports = made.dom0.channels.ports()
        self.scheduler = made.scheduler.state()
        self.engines = len(made.physical.invalidators), len(made.physical.executors)
        self.residents = [resident.domain.domid for resident in made.residents]

    def assert_still(self, made: Machine) -> None:
        now = Whole(made)
        for old, new in zip(self.columns, now.columns, strict=True):
            assert np.array_equal(old, new)
        self.columns = now.columns = []
        assert vars(self) == vars(now)
        assert made.audit() == []


class Broken(Exception):
    """Something that nobody foresees."""


STEPS = [
    (FrameTable, "allocate_shared", 1), (domain_builder, "Domain", 1), (domain_builder, "DomainArea", 1),
    (domain_builder, "L4Cache", 1), (domain_builder, "PageTables", 1), (FrameTable, "allocate_many", 1),
    (FrameTable, "allocate_many", 3), (FrameTable, "allocate_many", 4), (domain_builder, "lower_l3", 1),
    (EventChannels, "alloc_unbound", 1), (EventChannels, "alloc_unbound", 2), (domain_builder, "build", 1),
    (domain_builder, "EventChannels", 1), (domain_builder, "GrantTable", 1), (GrantTable, "reserve", 2),
    (domain_builder, "Dispatcher", 1),
    (domain_builder, "Engine", 1), (domain_builder, "Resident", 1), (domain_builder, "write_domu", 1),
    (Store, "introduce", 1), (FrameTable, "take_writable", 1), (FrameTable, "take_writable", 2),
    (domain_builder, "boot_registers", 1), (PageTables, "pin", 1), (PageTables, "take_table", 1),
    (Backend, "attach", 1), (EventChannels, "bind_device", 1), (EventChannels, "bind_device", 2),
    (domain_builder, "prepare_vcpu", 1), (Credit, "add_domain", 1), (Credit, "add", 1), (Credit, "add", 2),
]  # fmt: skip


@pytest.mark.promise("D-2")
@pytest.mark.parametrize(("where", "name", "call"), STEPS, ids=[f"{step[1]} {step[2]}" for step in STEPS])
def test_whatever_fails_nothing_is_left(
    made: Machine, monkeypatch: pytest.MonkeyPatch, where: object, name: str, call: int
) -> None:
    before = Whole(made)
    real, calls = getattr(where, name), 0

    def failing(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Broken
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        if where is PageTables:  # compiled, it has no methods that could be replaced
            patch.setattr(domain_builder, "PageTables", type("Failing", (PageTables,), {name: failing}))
        else:
            patch.setattr(where, name, failing)
        with pytest.raises(Broken):
            made.create(HELLO, dataclasses.replace(CONFIG, vcpus=2), console=Sink())
        assert calls == call, "it failed where it was to fail"
    before.assert_still(made)
    sink = Sink()
    made.create(HELLO, CONFIG, console=sink)
    assert made.run() is Outcome.ENDED
    assert b"SUCCESS" in sink.data


@pytest.mark.promise("D-2")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vcpus": 0}, "0 vCPUs"),
        ({"vcpus": 33}, "33 vCPUs"),
        ({"max_event_channels": 1}, "1 event channels"),
        ({"weight": 0}, "hello: a scheduling weight of 0 is out of range"),
        ({"cap": 101}, "hello: a scheduling cap of 101 %"),
        ({"uuid": "me"}, "'me' is not a UUID"),
        ({"memory_pages": 9 * PAGES}, "do not fit"),
        ({"memory_pages": 16}, "needs at least"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_exists(
    made: Machine, change: dict[str, object], why: str
) -> None:
    before = Whole(made)
    with pytest.raises((ConfigError, ImageError), match=why):
        made.create(HELLO, dataclasses.replace(CONFIG, **change), console=Sink())  # type: ignore[arg-type]
    before.assert_still(made)


@pytest.mark.promise("D-2")
def test_memory_that_is_nearly_enough(made: Machine) -> None:
    """What the guest wants is there, what Xen needs for it on top is not, to the last frame."""
    frames = made.frames
    spare = frames.allocate_xen(frames.free_count - PAGES)
    refused = 0
    while True:
        before = Whole(made)
        try:
            made.create(HELLO, CONFIG, console=Sink())
        except ConfigError:
            before.assert_still(made)
            refused += 1
        else:
            break
        frames.drop(spare.pop())
    assert 30 < refused < 64, "it is within FRAMES_A_DOMAIN"


@pytest.mark.promise("D-3")
def test_a_configuration_is_the_callers(made: Machine) -> None:
    config = DomainConfig("twice", PAGES // 4 * 3)
    image = load_image(build_builtin("hello"), "hello")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.uuid = "x"  # type: ignore[misc]
    config = dataclasses.replace(config, memory_pages=PAGES)
    one = made.create(image, config, console=Sink())
    two = made.create(HELLO32, config, console=Sink())
    assert config.uuid == ""
    assert one.config.uuid != two.config.uuid


def test_a_uuid_of_ones_own(made: Machine) -> None:
    chosen = uuid.UUID(int=0x1234_5678 << 64 | 77)
    config = DomainConfig("hello", PAGES, uuid=str(chosen).upper())
    domain = made.create(HELLO, config, console=Sink())
    assert domain.config.uuid == str(chosen)
    assert made.store.read_text(f"/local/domain/{domain.domid}/vm") == f"/vm/{chosen}"
    before = Whole(made)
    with pytest.raises(ConfigError, match=f"hello has the UUID {chosen}"):
        made.create(HELLO32, dataclasses.replace(config, name="other"), console=Sink())
    before.assert_still(made)


def test_identifiers_follow_from_seed_and_number() -> None:
    identifier = domain_builder.identifier
    assert identifier(1, 7) == "00000000-0000-0000-0000-000100000007"
    seeds = [0, 1, (1 << 96) - 1, 1 << 96, (1 << 96) + 1, 1 << 500]
    assert len({identifier(seed, 1) for seed in seeds}) == len(seeds)
    assert identifier(1 << 500, 1) == identifier(1 << 500, 1)


def test_weight_and_cap_are_the_schedulers(made: Machine) -> None:
    domain = made.create(HELLO, dataclasses.replace(CONFIG, weight=512, cap=50), console=Sink())
    assert made.scheduler.parameters(domain.domid) == (512, 50)
    made.adjust(domain, weight=100)
    made.adjust(domain, cap=0)
    assert made.scheduler.parameters(domain.domid) == SchedParameters(100, 0)
    with pytest.raises(ConfigError, match="cap of 101"):
        made.adjust(domain, cap=101)
    assert made.run() is Outcome.ENDED
    with pytest.raises(ConfigError, match="is dead"):
        made.adjust(domain, cap=1)
