# SPDX-License-Identifier: GPL-2.0-only
"""Whole machines whose vCPUs are plain data time and again, and run on from it bit for bit: no lazy flag, no
hidden segment, no mode of the FPU, no pending step may be forgotten.
"""

import random

import pytest

from pyhv.cpu.registers import Registers
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.observe.digest import Digest
from pyhv.state import restore, state, unexplained
from pyhv.testing.guest_machine import Sink, image_of
from pyhv.testing.user_guest import source
from pyhv.until import Exits, Outcome
from pyhv.xenstore.peers import introduce_peers

PAGES = 4096
VCPUS = {"smp32": 4}
GUESTS = (
    ("hello",), ("pages",), ("usermode",), ("ticker",), ("debug",), ("opcodes",), ("fifo",), ("ping", "pong"),
    ("hello32",), ("traps32",), ("usermode32",), ("smp32",), ("events32",), ("opcodes32",), ("pages32",),
)  # fmt: skip
MOST_STOPS = 2000

ARITHMETIC = source(
    """    push 0x1f80 | 1 << 13                       # SSE rounds down, x87 up, to double precision
    ldmxcsr [rsp]
    mov word ptr [rsp], 0x37f & ~0x300 | 2 << 8 | 2 << 10
    fldcw [rsp]
    mov eax, 3
    cvtsi2sd xmm1, eax
    mov eax, 1
    cvtsi2sd xmm0, eax
    movapd xmm5, xmm0
    fld1
    fldpi
    mov ecx, 1500
    xor ebx, ebx
    mov r8, -1
again:
    divsd xmm0, xmm1
    addsd xmm0, xmm5
    .byte 0xd8, 0xc9                            # fmul st(0), st(1)
    fsqrt
    .byte 0xd8, 0xc1                            # fadd st(0), st(1)
    .byte 0xd9, 0xc9                            # fxch
    add r8, rcx                                 # carries, borrows and directions across blocks
    jmp one
one:
    adc ebx, 0
    std
    sub r8d, ebx
    jmp two
two:
    sbb ebx, ecx
    cld
    rcl r8, 3
    jmp three
three:
    setp al
    loop again
    fstp qword ptr [rsp]
    mov rdi, [rsp]
    movq rsi, xmm0
    mov eax, 2                                  # which shows the registers to the digest
    syscall
"""
)


def run(images: list[tuple[str, bytes]], *, tuned: bool, one_in: float, renew: bool) -> tuple[str, int]:
    """Run guests in spans of time drawn by lot: digest, outcome and consoles; and how often they stopped."""
    machine = Machine(MachineConfig(PAGES * len(images), virtual_time=True, seed=1, tuned=tuned))
    digest = Digest()
    machine.observe(digest)
    lot, stops = random.Random(20261127), 0
    consoles, domains = [], []
    try:
        for name, image in images:
            consoles.append(Sink())
            config = DomainConfig(name, PAGES, vcpus=VCPUS.get(name, 1))
            domains.append(machine.create(load_image(image, name), config, console=consoles[-1]))
        introduce_peers(machine.store, machine.residents.domids())
        outcome = Outcome.TIMEOUT
        while outcome in (Outcome.TIMEOUT, Outcome.STOPPED):
            assert stops < MOST_STOPS
            if lot.random() < 0.9:
                outcome = machine.run(timeout_ns=1 + int(lot.expovariate(1 / one_in)))
            else:
                outcome = machine.run(Exits(lot.randrange(1, 4)))
            stops += 1
            if renew:
                for domain in domains:
                    say_and_restore(domain)
        said = b"".join(console.data for console in consoles).decode("latin-1")
        return f"{digest.summary()}{outcome}\n{said}", stops
    finally:
        machine.close()


def say_and_restore(domain: Domain) -> None:
    """Put all vCPUs into plain data, and back: their caches are empty then, their registers in new blocks."""
    if not domain.alive:
        return
    unit = domain.engine.debug_unit
    if unit is not None:
        known = dict.fromkeys(unit.known)
        said = state(unit)
        restore(unit, {"known": []})
        restore(unit, said)
        assert dict.fromkeys(unit.known) == known
        assert state(unit) == said
        assert unexplained(unit) == []
    for vcpu in domain.vcpus:
        plain = state(vcpu)
        assert unexplained(vcpu) == []
        vcpu.context.registers = Registers(rax=0x5A5A, cpl=0)  # nothing is left of what it was
        restore(vcpu, plain)
        assert state(vcpu) == plain


def assert_nothing_is_forgotten(images: list[tuple[str, bytes]], span: float, *, tuned: bool = True) -> None:
    untouched, stops = run(images, tuned=tuned, one_in=span, renew=False)
    assert "SUCCESS" in untouched
    assert stops > 10
    assert run(images, tuned=tuned, one_in=span, renew=True) == (untouched, stops)


@pytest.mark.parametrize("names", GUESTS, ids=lambda names: names[0])
def test_a_guest_runs_on_from_plain_data(names: tuple[str, ...]) -> None:
    images = [(name, build_builtin(name)) for name in names]
    machine_ns = elapsed(images)
    assert_nothing_is_forgotten(images, machine_ns / 200)


def elapsed(images: list[tuple[str, bytes]]) -> int:
    """Machine time that the guests take, ns."""
    machine = Machine(MachineConfig(PAGES * len(images), virtual_time=True, seed=1))
    try:
        for name, image in images:
            config = DomainConfig(name, PAGES, vcpus=VCPUS.get(name, 1))
            machine.create(load_image(image, name), config, console=Sink())
        introduce_peers(machine.store, machine.residents.domids())
        assert machine.run(timeout_ns=20 * 10**9) is Outcome.ENDED
        return machine.now()
    finally:
        machine.close()


@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "plain"])
def test_arithmetic_goes_on_between_any_two_blocks(tuned: bool) -> None:
    assert_nothing_is_forgotten([("arithmetic", image_of(ARITHMETIC))], 500, tuned=tuned)
