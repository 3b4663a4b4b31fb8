# SPDX-License-Identifier: GPL-2.0-only
"""Target `emulator`: code that faults - privileged instructions, stores into page tables, ports, INT n, the
forced-emulation prefix - executed by the engine, at page edges, with any registers, in both modes and both
arrangements of page tables; and exceptions that no code caused. The stage and its checks are those of the
hypercall target.
"""

import struct
from collections.abc import Callable
from typing import Any

from fuzz.hypercalls import Attack, Hypercalls
from pyhv.abi.numbers import Assist, AssistCommand, Hypercall
from pyhv.cpu import vmcb as v

_RUN_NS = 1500
_REGISTERS = (*range(4), *range(5, 16))
"""All general registers but RSP."""

_CODES = """
0f20c0 0f22c0 0f20d8 0f22d8 0f20e0 0f22e0 440f20c0 0f20d0 0f22d0 0f2100 0f23f8 0f21f0 0f23c0 0f32
0f30 0f31 0f01f9 0f01d1 0f01d0 0f06 0f09 0f08 fa fb f4 0f0138 0f0118 0f0110 0f0100 0f01f8 0f00d8
0f00d0 0f01f0 0f01ca 0f01c8 f30faef0 f30faec8 0fa2 0f0b78656e0fa2 0f0b78656e 0f0b7865 0f0b
0f0b78656e0f31 e460 e660 ec ee ed ef 66ed 66ef 6c 6e f36c f36e e510 e721 0f05 0f34 480f05 660f05
0f07 0f35 cc cd80 cd03 cdff cd0e ce f1 cf 48cf cb 48cb ca0800 ff2b ff1b 48ff2b 9d 9c c3 e8fbffffff
8ed0 8ed8 8ee0 8ee8 0fb2e3 0f00e0 0f03c3 0f02c3 17 0fa1 0fa9 8cd0 488903 8903 668903 8803
48c70300000000 488713 480fb10b f0480fb10b 480fc10b f0480fab03 480fba2b01 480fba3304 f00fabc3 f0480fb3db
48830b02 488323fd 48ff03 48ff0b 48f713 48f71b 0fc70b 480fc70b f0480fc70b 480fc303 0f2903 0f1103 f348ab aa
48a5 f348a5 8f03 0f9503 488923 48894304 48894301 0fae03 0fae0b dd33 488b03 8a03 ff23 ff13 ebfe eb00
90 f390 c5f877 62f1 0f0d03 0fff 67e300
"""
INSTRUCTIONS = tuple(bytes.fromhex(code) for code in _CODES.split())
"""Privileged instructions and what looks like them; ports; system calls, interrupts, returns; segment loads;
stores as kernels make them in page tables; a few loads and jumps."""
PREFIXES = (
    b"\x66",
    b"\x67",
    b"\xf0",
    b"\xf2",
    b"\xf3",
    b"\x64",
    b"\x65",
    b"\x2e",
    b"\x48",
    b"\x41",
    b"\x4f",
    b"",
)
FLAGS = (0x202, 0x202, 0x202, 0x302, 0x3202, 0x4202, 0x10202, 0x40202, 0x602, 0x2)


class CodeAttack(Attack):
    """Acts that run code."""

    def _code(self) -> bytes:
        """Some instructions, mostly known ones."""
        source, code = self.source, b""
        for _ in range(1 + source.below(4)):
            if source.chance(40):
                code += source.pick(PREFIXES) * (1 + source.below(3))
            how = source.u8()
            if how < 216:
                instruction = bytearray(source.pick(INSTRUCTIONS))
                if how & 3 == 3:
                    instruction[-1] = source.u8()
                code += instruction
            else:
                code += source.raw(1 + how % 8)
        return code

    def _place(self, code: bytes) -> int:
        """Where the code goes: inside a page, or over its end."""
        how = self.source.u8()
        if how < 96:
            offset = 64
        elif how < 176:
            offset = 4096 - len(code)
        else:
            offset = 4096 - how % 16
        return self.guest.code + offset

    def _set_registers(self) -> None:
        q = self.guest.q
        for number in _REGISTERS:
            how = self.source.u8()
            if how < 64:
                q[number] = how
            elif how < 128:
                q[number] = self.grammar.va()
            elif how < 160:
                q[number] = self.grammar.entry()
            elif how < 176:  # the machine address of nothing in particular, or an MSR's number
                q[number] = (0xC000_0100, 0xC000_0080, 0x1B, 0x10, 0x4000_0000, 0x277, 0xC000_0102, 0x400)[
                    how & 7
                ]
            elif how < 192:
                q[number] = self.guest.vcpu.paging.kernel_l4 << 12

    def run_code(self) -> None:
        """Execute code in the present mode."""
        guest = self.guest
        if not guest.alive:
            return
        code = self._code()
        at = self._place(code)
        guest.poke(at, code)
        self._set_registers()
        guest.q[v.RIP] = at
        if guest.vcpu.in_kernel:
            guest.q[v.RSP] = guest.stack if not self.source.chance(24) else self.grammar.va()
        self._go()

    def user_code(self) -> None:
        """Execute code in user mode, entered through the iret hypercall."""
        guest = self.guest
        if not guest.alive:
            return
        code = self._code()
        at = self._place(code)
        guest.poke(at, code)
        if not guest.vcpu.paging.user_l4:
            self.duplicate()
        if guest.alive and guest.vcpu.paging.user_l4 and guest.vcpu.in_kernel:
            frame = (0, 0, 0, 0, at, 0xE033, self.source.pick(FLAGS), guest.stack, 0xE02B)
            guest.poke(guest.stack, struct.pack("<9Q", *frame))
            self.call(Hypercall.IRET)
        if guest.alive:
            self._set_registers()
            self._go()

    def _go(self) -> None:
        """Let the engine run, as the machine's loop does."""
        guest = self.guest
        self.world.exit(guest, guest.dispatcher.enter)
        if not guest.alive:
            return
        self.world.run(guest, _RUN_NS)

    def fault(self) -> None:
        """An exception with any error code, address and place."""
        guest = self.guest
        if not guest.alive:
            return
        q, d = guest.q, guest.cpu.vmcb.d
        vector = self.source.pick((14, 14, 14, 13, 13, 6, 3, 0x80, 1, 7, 10, 11, 12, 17, 16, 19, 255, 4))
        software = vector in (3, 4, 0x80, 255) or self.source.chance(16)
        code = self._code()
        at = self._place(code)
        guest.poke(at, code)
        self._set_registers()
        q[v.RIP] = at
        q[v.CR + 2] = self.grammar.va()
        d[v.ERROR_CODE] = (
            self.source.u8() & 0x1F if vector == 14 else self.source.pick((0, 0, 8, 0xC, 0x402, 0xE02B))
        )
        d[v.EXCEPTION_IS_INT] = software
        self.world.exit(guest, lambda: guest.dispatcher.exception(vector))

    def table_store(self) -> None:
        """With writable page tables on, store into one of the own L1 tables through its mapping."""
        guest = self.guest
        self.call(Hypercall.VM_ASSIST, AssistCommand.ENABLE, Assist.WRITABLE_PAGETABLES)
        page = self.source.below(26)
        table = guest.page(page)
        self.remap(table, 0x61 | 1 << 63)
        self.mmuext(0, guest.frames[page])
        if not guest.alive:
            return
        code = self._code()
        at = self._place(code)
        guest.poke(at, code)
        self._set_registers()
        q = guest.q
        q[v.RIP], q[v.RBX] = (
            at,
            table + 8 * self.grammar.slot() + (self.source.u8() & 7 if self.source.chance(64) else 0),
        )
        q[v.RDI] = q[v.RBX]
        q[v.RAX] = self.grammar.leaf()
        if guest.vcpu.in_kernel:
            q[v.RSP] = guest.stack
        self._go()


_CODE_ACTS = (
    CodeAttack.run_code, CodeAttack.run_code, CodeAttack.run_code, CodeAttack.user_code, CodeAttack.user_code,
    CodeAttack.fault, CodeAttack.fault, CodeAttack.table_store, CodeAttack.table_store,
)  # fmt: skip
_SETTING_UP = (
    Attack.request, Attack.duplicate, Attack.base, Attack.descriptors, Attack.protect, Attack.other_vcpu,
    Attack.edge, Attack.wait, Attack.chain,
)  # fmt: skip


class Emulator(Hypercalls):
    """Runs code on a world that lives for some thousand exits."""

    name = "emulator"
    unit = "exits"
    attack = CodeAttack
    acts: tuple[Callable[[Any], None], ...] = (*_CODE_ACTS * 2, *_SETTING_UP)

    def count(self) -> int:
        """Exits so far."""
        assert self.world is not None
        return self.world.exits


class Emulator32(Emulator):
    """The same with 32-bit attackers."""

    name = "emulator32"

    def __init__(self) -> None:
        super().__init__(32)
