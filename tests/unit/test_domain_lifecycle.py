# SPDX-License-Identifier: GPL-2.0-only
"""The stages of a domain's life, and the numbers by which domains are known."""

import itertools

import pytest

from pyhv.abi.domid import DOMID_FIRST_RESERVED
from pyhv.abi.numbers import Shutdown
from pyhv.domain.lifecycle import IllegalTransition, Life, Lifecycle
from pyhv.errors import ConfigError
from pyhv.resident import Residents

PAUSED, RUNNING, SUSPENDED, DYING, DEAD = Lifecycle
LEGAL = {
    (PAUSED, RUNNING), (PAUSED, SUSPENDED), (PAUSED, DYING), (RUNNING, PAUSED), (RUNNING, SUSPENDED),
    (RUNNING, DYING), (SUSPENDED, RUNNING), (SUSPENDED, DYING), (DYING, DEAD),
}  # fmt: skip


@pytest.mark.promise("D-4")
@pytest.mark.parametrize(("old", "new"), list(itertools.product(Lifecycle, Lifecycle)))
def test_which_stage_may_follow(old: Lifecycle, new: Lifecycle) -> None:
    life = Life(stage=old)
    if (old, new) in LEGAL:
        life.become(new)
        assert life.stage is new
    else:
        with pytest.raises(IllegalTransition, match=f"{old.value} cannot become {new.value}"):
            life.become(new)
        assert life.stage is old


@pytest.mark.promise("D-4")
@pytest.mark.parametrize("old", Lifecycle)
@pytest.mark.parametrize("reason", [Shutdown.POWEROFF, Shutdown.SUSPEND, Shutdown.CRASH, 0x64])
def test_the_first_shutdown_counts(old: Lifecycle, reason: int) -> None:
    life = Life(stage=old, reason=77, cause="before")
    life.shut_down(reason, "now")
    if old in (PAUSED, RUNNING):
        assert life.stage is (SUSPENDED if reason == Shutdown.SUSPEND else DYING)
        assert (life.reason, life.cause) == (reason, "now")
    else:
        assert (life.stage, life.reason, life.cause) == (old, 77, "before")


def test_who_is_resumed_has_never_shut_down() -> None:
    life = Life(stage=RUNNING)
    life.announced = 1
    life.shut_down(Shutdown.SUSPEND)
    life.resume()
    assert life == Life(stage=RUNNING)


def test_destroying() -> None:
    for old in (PAUSED, RUNNING, SUSPENDED):
        life = Life(stage=old)
        life.destroy()
        assert (life.stage, life.reason) == (DYING, None)
    ended = Life(stage=DYING, reason=0)
    ended.destroy()
    assert (ended.stage, ended.reason) == (DYING, 0)


@pytest.mark.promise("D-5")
def test_a_number_is_used_again_as_late_as_can_be() -> None:
    still_known = {3, 5}
    residents = Residents(still_known.__contains__)
    last = DOMID_FIRST_RESERVED - 1
    assert [residents.next_domid() for _ in range(4)] == [1, 2, 4, 6]
    seen = [residents.next_domid() for _ in range(last - 6)]
    assert (seen[0], seen[-1]) == (7, last)
    assert [residents.next_domid() for _ in range(3)] == [1, 2, 4], "none was living"


@pytest.mark.promise("D-5")
def test_no_number_is_free() -> None:
    with pytest.raises(ConfigError, match="domain numbers"):
        Residents(lambda _domid: True).next_domid()
