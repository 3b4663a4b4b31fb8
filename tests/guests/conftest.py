# SPDX-License-Identifier: GPL-2.0-only
"""Paused guests, for tests of single hypercalls; modules that need others have their own."""

from collections.abc import Iterator

import pytest
from compat_machine import RING1_CS, SYSENTER, Paused32, paused32
from granting import Trio
from guest_machine import Paused, paused

from pyhv.domain.callbacks import CallbackEntry


@pytest.fixture
def guest() -> Iterator[Paused]:
    """A 64-bit guest that has not run yet."""
    with paused() as made:
        yield made


@pytest.fixture
def narrow(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> Paused:
    """The same guest, which makes its calls and lays out its structures as a 32-bit guest does."""
    monkeypatch.setattr(guest.dispatcher.call, "width", 32)
    monkeypatch.setattr(guest.dispatcher.call, "word", 4)
    return guest


@pytest.fixture
def guest32() -> Iterator[Paused32]:
    """A 32-bit guest with a handler for everything."""
    with paused32() as made:
        made.handlers()
        made.vcpu.callbacks.sysenter = CallbackEntry(made.handler(SYSENTER), False, RING1_CS)
        yield made


@pytest.fixture
def trio() -> Iterator[Trio]:
    """Three guests; afterwards nothing may be left of them."""
    made = Trio()
    yield made
    assert made.machine.audit() == []
    for guest in (made.a, made.b, made.c):
        if guest.domain.alive:
            made.kill(guest)
        assert made.machine.audit() == []
    assert made.machine.frames.free_count == made.free
    made.machine.close()
