# SPDX-License-Identifier: GPL-2.0-only
"""What others want done to a domain: now if it rests, before its next instruction if it runs elsewhere."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyhv.domain.mailbox import Mailbox

LONG = 20
"""Seconds after which a test gives up."""


class Elsewhere:
    """Another processor, with a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def does(self, act: Callable[[], object]) -> None:
        self._thread.submit(act).result(LONG)


class Engine:
    """Runs three instructions, each of which exits; `during` is what happens elsewhere before one."""

    def __init__(self, box: Mailbox, during: dict[int, Callable[[], object]]) -> None:
        self.box, self.during = box, during
        self.log: list[str] = []

    def stop(self) -> None:
        self.log.append("asked to stop")

    def turn(self) -> None:
        self.box.enter(self.stop)
        try:
            for number in range(3):
                self.during.get(number, lambda: None)()
                self.log.append(f"instruction {number}")
                self.box.drain()
        finally:
            self.box.leave()

    def note(self, what: str, *, by: str = "a peer") -> None:
        self.log.append(f"{what} by {by}")


def test_nothing_waits_while_the_domain_rests() -> None:
    box = Mailbox()
    engine = Engine(box, {})
    box.do(engine.note, "flush")
    Elsewhere().does(lambda: box.do(engine.note, "bits", by="another"))
    assert engine.log == ["flush by a peer", "bits by another"]
    assert not box.posted


def test_nothing_waits_in_an_exit_of_the_domain_itself() -> None:
    box = Mailbox()
    engine = Engine(box, {})
    engine.during = {1: lambda: box.do(engine.note, "flush", by="itself")}
    engine.turn()
    assert engine.log == ["instruction 0", "flush by itself", "instruction 1", "instruction 2"]


def test_a_post_to_a_running_domain_waits_and_is_done_before_the_next_instruction() -> None:
    box, other = Mailbox(), Elsewhere()
    engine = Engine(box, {})

    def post() -> None:
        box.do(engine.note, "flush")
        box.do(engine.note, "bits", by="another")

    engine.during = {1: lambda: other.does(post)}
    engine.turn()
    assert engine.log == [
        "instruction 0", "asked to stop", "asked to stop",
        "instruction 1", "flush by a peer", "bits by another", "instruction 2",
    ]  # fmt: skip


def test_what_came_too_late_for_an_exit_is_done_before_the_next_turn() -> None:
    box, other = Mailbox(), Elsewhere()
    engine = Engine(box, {})
    box.enter(engine.stop)
    other.does(lambda: box.do(engine.note, "flush"))
    assert engine.log == ["asked to stop"]
    box.leave()
    assert engine.log == ["asked to stop", "flush by a peer"]


def test_what_is_done_may_ask_for_more() -> None:
    box, other = Mailbox(), Elsewhere()
    engine = Engine(box, {})

    def post() -> None:
        box.do(lambda: box.do(engine.note, "second"))

    post()
    box.enter(engine.stop)
    other.does(post)
    box.leave()
    assert engine.log == ["second by a peer", "asked to stop", "second by a peer"]


def test_nobody_begins_to_run_what_somebody_else_is_at() -> None:
    box, other = Mailbox(), Elsewhere()
    engine = Engine(box, {})
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(LONG)
        engine.log.append("done")

    with ThreadPoolExecutor(1) as third:
        at_it = third.submit(box.do, slow)
        assert begun.wait(LONG)
        box.do(engine.note, "flush")  # waits for its turn, and not we for it
        running = threading.Thread(target=engine.turn)
        running.start()
        other.does(lambda: None)
        assert engine.log == []
        go_on.set()
        running.join(LONG)
        at_it.result(LONG)
    assert engine.log == ["done", "flush by a peer", "instruction 0", "instruction 1", "instruction 2"]


def test_what_fails_leaves_the_domain_to_others() -> None:
    box = Mailbox()
    with pytest.raises(ZeroDivisionError):
        box.do(lambda: 1 // 0)
    engine = Engine(box, {})
    Elsewhere().does(engine.turn)
    assert len(engine.log) == 3


def test_many_threads_lose_nothing() -> None:
    """Of all that is handed in each is done once, and never two at a time."""
    box = Mailbox()
    done, inside = [0], [0]

    def act() -> None:
        inside[0] += 1
        assert inside[0] == 1
        done[0] += 1
        inside[0] -= 1

    def post() -> None:
        for _ in range(500):
            box.do(act)

    def turns() -> None:
        for _ in range(200):
            box.enter(lambda: None)
            box.drain()
            box.leave()

    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(act_) for act_ in (post, post, turns, turns)]:
            future.result(LONG)
    assert done == [1000]
    assert not box.posted
