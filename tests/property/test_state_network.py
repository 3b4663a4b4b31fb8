# SPDX-License-Identifier: GPL-2.0-only
"""Saved state of network devices and switches that anybody may have made: refused, or as good as any."""

import copy
from collections.abc import Iterator
from contextlib import suppress

import pytest
from frames import TCP, ethernet, packet, transport
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netfront import ABLE, BLANK, TX, NetFront, gso

from fuzz.plain import replaced
from fuzz.source import Source
from pyhv.errors import StateError
from pyhv.machine import Machine
from pyhv.net.mac import BROADCAST
from pyhv.state import Plain
from pyhv.testing.guest_machine import PAGES, machine

HELLO = ethernet(b"hello, everybody", 0x88B5, to=BROADCAST)


@pytest.fixture(scope="module")
def busy() -> Iterator[tuple[Machine, NetFront, NetFront]]:
    """One guest that has to wait before it may send on, and one for which frames wait."""
    with machine(pages=8 * PAGES) as made:
        one, other = NetFront(made, "switch=lan.10,rate=8Kb/s@1s"), NetFront(made, "switch=lan.10")
        one.connect(ABLE, split=True)
        other.connect(ABLE)
        made.clock.advance_to(2_000_000_000)
        large = packet(4, TCP, transport(4, TCP, bytes(9000)))
        one.send(large, BLANK, (gso(1448, 1),))
        one.post(HELLO)
        one.publish(TX)
        one.ring()
        other.send(HELLO)
        assert one.device.next_deadline() is not None
        yield made, one, other


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.binary(min_size=1, max_size=40), st.booleans())
def test_a_device_refuses_what_cannot_be(
    busy: tuple[Machine, NetFront, NetFront], noise: bytes, which: bool
) -> None:
    made, one, other = busy
    front = one if which else other
    said = {key: copy.deepcopy(front.device.state()) for key in ("good", "bad")}
    before = made.dom0.networks.state()
    bad: Plain = replaced(Source(noise), said["bad"])
    if isinstance(bad, dict):
        with suppress(StateError):
            front.device.restore(bad)
            assert front.device.state() == bad, "what was not refused is what it is"
    front.device.restore(said["good"])
    made.dom0.networks.restore(before)
    assert front.device.state() == said["good"]
    assert made.dom0.networks.state() == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.binary(min_size=1, max_size=40))
def test_switches_refuse_what_cannot_be(busy: tuple[Machine, NetFront, NetFront], noise: bytes) -> None:
    networks = busy[0].dom0.networks
    said = networks.state()
    bad: Plain = replaced(Source(noise), copy.deepcopy(said))
    if isinstance(bad, dict):
        with suppress(StateError):
            networks.restore(bad)
            assert networks.state() == bad
        networks.restore(said)
    assert networks.state() == said
