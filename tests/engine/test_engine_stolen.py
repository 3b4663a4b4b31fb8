# SPDX-License-Identifier: GPL-2.0-only
"""No exit is stolen: whatever asks the engine to stop, from another thread and at any moment, each of the
intercepted instructions reaches its sink exactly once, and its block is executed to the end.

The requests come from native code in a thread of its own, many thousand times a second, because Python
cannot ask often enough while the engine's callbacks hold the interpreter.
"""

import collections
import ctypes
import mmap
import os
import threading
from collections.abc import Iterator

import pytest
from bare_engine import CODE, DATA, Bare, Recorder, at

from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble

pytestmark = pytest.mark.usefixtures("both_engines")

ROUNDS = 1_000_000 if "CI" in os.environ else 50_000
MOST_TIMES = 20

_POKE = """
    push rbx
    push r12
again:
    movabs rdi, {argument}
    movabs rax, {post}
    call rax
    mov ecx, {pauses}
wait:
    pause
    dec ecx
    jnz wait
    movabs rax, {ended}
    cmp dword ptr [rax], 0
    je again
    pop r12
    pop rbx
    ret
"""


class Poker:
    """A thread that asks an engine to stop, again and again, with so many PAUSE instructions between."""

    def __init__(self, bare: Bare, pauses: int) -> None:
        post, argument = bare.engine.stop_entry
        self._ended = ctypes.c_uint32(0)
        source = _POKE.format(
            post=post, argument=argument, pauses=pauses, ended=ctypes.addressof(self._ended)
        )
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(assemble(source, 0))
        entry = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(self._code)))
        self._thread = threading.Thread(target=entry)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.value = 1
        self._thread.join()


class Counter(Recorder):
    """Counts exits by kind without keeping them, and lets the guest go on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()

    def exception(self, vector: int) -> None:
        self.seen["interrupt" if vector == 0x21 else f"exception {vector}"] += 1

    def invalid_opcode(self) -> None:
        self.seen["ud2"] += 1
        self.engine.vmcb.rip += 2

    def syscall(self, length: int) -> None:
        self.seen["syscall"] += 1
        self.engine.vmcb.rip += length

    def sysenter(self, length: int) -> None:
        self.seen["sysenter"] += 1
        self.engine.vmcb.rip += length

    def cpuid(self) -> bool:
        self.seen["cpuid"] += 1
        self.engine.vmcb.q[v.RAX] = 1
        return True

    def clock_read(self, _aux: bool) -> None:
        self.seen["clock"] += 1
        self.engine.vmcb.q[v.RAX] = 1

    def port_read(self, _port: int, _size: int) -> int | None:
        self.seen["in"] += 1
        return 1

    def port_write(self, _port: int, _size: int, _value: int) -> bool:
        self.seen["out"] += 1
        return True

    def port_fault(self) -> None:
        self.seen["port fault"] += 1


@pytest.fixture
def bare() -> Iterator[Bare]:
    made = Bare(sink=Counter())
    if not made.engine.async_stop_safe:
        pytest.fail("this emulator cannot be stopped from another thread: see pyhv/cpu/stops.py")
    yield made
    made.close()


def execute(bare: Bare, body: str, rounds: int, pauses: int) -> tuple[dict[str, int], int]:
    """Execute `body` so many times under stops; (exits by kind, how often the engine came back)."""
    assert isinstance(bare.sink, Counter)
    bare.write(
        f"again:; {body}; lock inc qword ptr [rbx]; push rbp; pop rax; dec rbp; jnz again; idle:; jmp idle"
    )
    bare.q[v.RIP], bare.q[v.RBX], bare.q[v.RSP] = at(CODE), at(DATA), at(DATA, 0x800)
    bare.q[v.RBP], bare.q[v.R12] = rounds, 0
    came_back = 0
    with Poker(bare, pauses):
        while bare.q[v.RBP]:
            bare.engine.run()
            came_back += 1
    assert bare.data() == rounds, "an instruction ran twice, or not at all"
    bare.set_data(0)
    assert bare.q[v.RSP] == at(DATA, 0x800)
    return dict(bare.sink.seen), came_back


@pytest.mark.promise("T-3")
@pytest.mark.parametrize("pauses", [20_000, 500], ids=["1 kHz", "50 kHz"])
@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        ("cpuid", "xor eax, eax; cpuid; add r12, rax"),
        ("clock", "xor eax, eax; rdtsc; add r12, rax"),
        ("in", "in al, 0x80; movzx eax, al; add r12, rax"),
        ("out", "out 0x80, al; inc r12"),
        ("syscall", "syscall; inc r12"),
        ("sysenter", "sysenter; inc r12"),
        ("interrupt", "int 0x21; inc r12"),
        ("ud2", "ud2; inc r12"),
    ],
)
def test_every_execution_is_seen_once(bare: Bare, instruction: str, code: str, pauses: int) -> None:
    came_back = 0
    for time in range(1, MOST_TIMES + 1):  # on a busy host the other thread hardly runs
        seen, stops = execute(bare, code, ROUNDS, pauses)
        assert seen == {instruction: time * ROUNDS}
        assert bare.q[v.R12] == ROUNDS
        came_back += stops
        if came_back > 10:
            return
    pytest.fail(f"only {came_back} stops came: this host is too busy for the test to mean anything")


def test_all_of_them_in_one_block(bare: Bare) -> None:
    """A stop that one of them asks for, or that comes between them, does not hide those that follow."""
    rounds = ROUNDS // 5
    body = (
        "out 0x80, al; xor eax, eax; cpuid; rdtsc; in al, 0x80; xor eax, eax; cpuid; rdtscp; inc r12; syscall"
    )
    seen, _ = execute(bare, body, rounds, 200)
    expected = {"out": rounds, "cpuid": 2 * rounds, "clock": 2 * rounds, "in": rounds, "syscall": rounds}
    assert seen == expected


def test_a_sink_that_asks_for_a_stop_hides_no_other_exit() -> None:
    class Stopping(Counter):
        def port_write(self, _port: int, _size: int, _value: int) -> bool:
            self.engine.stop()
            return super().port_write(_port, _size, _value)

    sink = Stopping()
    bare = Bare(sink=sink)
    bare.write("out 0x80, al; xor eax, eax; cpuid; rdtsc; in al, 0x80; sysenter; hlt")
    bare.q[v.RIP], bare.q[v.RBX], bare.q[v.RSP] = at(CODE), at(DATA), at(DATA, 0x800)
    bare.engine.run()
    assert dict(sink.seen) == {"out": 1, "cpuid": 1, "clock": 1, "in": 1, "sysenter": 1}
    bare.close()
