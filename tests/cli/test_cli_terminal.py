# SPDX-License-Identifier: GPL-2.0-only
"""Raw mode, Ctrl-] and signals, at a pseudo-terminal."""

import os
import select
import signal
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator

import pytest

from pyhv.cli.terminal import MAX_TYPED, Keyboard, RawTerminal, Signals, is_usable_terminal


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    master, slave = os.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.mark.promise("E-5")
def test_raw_mode_passes_keys_and_is_undone(pty: tuple[int, int]) -> None:
    master, slave = pty
    before = termios.tcgetattr(slave)
    with RawTerminal(slave):
        during = termios.tcgetattr(slave)
        os.write(master, b"\x03\x1a\r")
        time.sleep(0.05)
        assert os.read(slave, 10) == b"\x03\x1a\r"  # Ctrl-C, Ctrl-Z and Return are bytes
        os.write(slave, b"a\n")
        assert os.read(master, 10) == b"a\r\n"  # a new line is still one
    assert during[3] & (termios.ECHO | termios.ICANON | termios.ISIG) == 0
    assert termios.tcgetattr(slave) == before


@pytest.mark.promise("E-5")
def test_raw_mode_is_undone_after_an_exception(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    with pytest.raises(ValueError, match="x"), RawTerminal(pty[1]):
        raise ValueError("x")
    assert termios.tcgetattr(pty[1]) == before


def test_raw_mode_again_after_a_stop(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    raw = RawTerminal(pty[1])
    raw.enter_raw()  # not entered yet: nothing
    assert termios.tcgetattr(pty[1]) == before
    with raw:
        termios.tcsetattr(pty[1], termios.TCSANOW, before)  # as a shell does
        raw.enter_raw()
        assert termios.tcgetattr(pty[1]) != before
    raw.restore()
    assert termios.tcgetattr(pty[1]) == before


class TestKeyboard:
    def test_keys_up_to_the_one_that_leaves(self, pty: tuple[int, int]) -> None:
        master, slave = pty
        got, left = [], []

        def feed(data: bytes) -> int:
            got.append(data)
            return len(data)

        with RawTerminal(slave):
            keyboard = Keyboard(slave, feed, lambda: left.append(1))
            os.write(master, b"ls\r")
            time.sleep(0.05)
            assert keyboard.pump()
            assert not left
            os.write(master, b"x\x1dy")
            time.sleep(0.05)
            assert not keyboard.pump()
            keyboard.close()
        assert got == [b"ls\r", b"x"]
        assert left == [1]

    def test_one_can_leave_a_guest_that_reads_nothing(self, pty: tuple[int, int]) -> None:
        master, slave = pty
        left = []
        with RawTerminal(slave):
            keyboard = Keyboard(slave, lambda data: 0, lambda: left.append(1))
            for _ in range(2 * MAX_TYPED // 1000):
                os.write(master, b"x" * 1000)
                while select.select([keyboard], [], [], 0)[0]:
                    keyboard.pump()
            assert len(keyboard.waiting) <= MAX_TYPED
            os.write(master, b"\x1d")
            time.sleep(0.05)
            while keyboard.pump():
                pass
            keyboard.close()
        assert left == [1]

    def test_a_terminal_that_hangs_up_is_left(self) -> None:
        master, slave = os.openpty()
        left = []
        keyboard = Keyboard(slave, len, lambda: left.append(1))
        os.close(master)
        assert not keyboard.pump()
        assert left == [1]
        keyboard.close()
        os.close(slave)


def test_a_pipe_and_a_foreign_terminal_are_not_usable(pty: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    assert not is_usable_terminal(reader)
    assert not is_usable_terminal(pty[1])  # a terminal, but not this process group's
    os.close(reader)
    os.close(writer)


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_becomes_readable(self, number: int) -> None:
        ours = signal.signal(number, signal.SIG_DFL)  # whoever ran the tests may ignore it
        try:
            with Signals(None) as signals:
                assert select.select([signals], [], [], 0)[0] == []
                os.kill(os.getpid(), number)
                assert select.select([signals], [], [], 1)[0] == [signals]
                assert signals.pump()
                assert signals.received == number
            assert signal.getsignal(number) is signal.SIG_DFL
        finally:
            signal.signal(number, ours)

    def test_an_ignored_signal_stays_ignored(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with Signals(None) as signals:
                os.kill(os.getpid(), signal.SIGHUP)
                assert signals.received == 0
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_retiring_ends_it_as_an_input(self) -> None:
        with Signals(None) as signals:
            signals.retire()
            assert select.select([signals], [], [], 0)[0] == [signals]
            assert not signals.pump()
            assert signals.received == 0

    @pytest.mark.promise("E-5")
    @pytest.mark.parametrize("second", [True, False])
    def test_a_run_that_does_not_end_is_ended_and_the_terminal_restored(
        self, pty: tuple[int, int], second: bool
    ) -> None:
        """By the second signal, or by itself when the grace is over."""
        _, slave = pty
        before = termios.tcgetattr(slave)
        script = textwrap.dedent(
            """
            import sys, time
            from pyhv.cli import terminal
            terminal.GRACE_SECONDS = float(sys.argv[2])
            raw = terminal.RawTerminal(int(sys.argv[1]))
            with terminal.Signals(raw), raw:
                print("ready", flush=True)
                while True:
                    time.sleep(60)
            """
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(slave), "60" if second else "0.1"],
            pass_fds=[slave], stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert termios.tcgetattr(slave) != before
        process.terminate()
        if second:
            time.sleep(0.2)
            assert process.poll() is None
            process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
        process.stdout.close()
        assert termios.tcgetattr(slave) == before
