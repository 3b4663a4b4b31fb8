# SPDX-License-Identifier: GPL-2.0-only
"""Other users of Unicorn in one process: prints what their engines compute.

Run as a program by `test_engine_tuning.py`, `alone` or `with pyhv`, which then tunes engines of its own in
the same process, between two groups of theirs.
"""

import sys

import keystone
from unicorn import UC_ARCH_ARM64, UC_ARCH_X86, UC_HOOK_BLOCK, UC_HOOK_MEM_WRITE, UC_MODE_64, UC_MODE_ARM, Uc
from unicorn.arm64_const import UC_ARM64_REG_X0
from unicorn.x86_const import UC_X86_REG_EBP, UC_X86_REG_RIP, UC_X86_REG_RSP

FAR = 0x7000_0000
FUNCTION = 0x1000
# Calls the function 400 times, changes its constant and the data behind it each time, and adds up.
PROGRAM = """
    mov rbx, {function}
    xor ebp, ebp
    mov ecx, 400
again:
    call rbx
    add ebp, eax
    inc dword ptr [rbx + 1]
    mov [rbx + 0x800], ecx
    dec ecx
    jnz again
    nop
"""


class User:
    """An engine of the plain binding whose RAM begins at `base`, in two pieces."""

    def __init__(self, base: int, *, hooked: bool) -> None:
        self.base = base
        self.stores: list[tuple[int, int, int]] = []
        self.blocks: list[tuple[int, int]] = []
        self.uc = uc = Uc(UC_ARCH_X86, UC_MODE_64)
        uc.mem_map(base, 0x10000)
        uc.mem_map(base + 0x10_0000, 0x4000)
        code, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(
            PROGRAM.format(function=base + FUNCTION), base
        )
        self.end = base + len(code)
        uc.mem_write(base, bytes(code))
        uc.mem_write(base + FUNCTION, b"\xb8\x05\x00\x00\x00\xc3")  # mov eax, 5; ret
        if hooked:
            uc.hook_add(UC_HOOK_MEM_WRITE, self._stored)

    def _stored(self, _uc: Uc, _kind: int, address: int, size: int, value: int, _data: object) -> None:
        self.stores.append((address, size, value))

    def _began(self, _uc: Uc, address: int, size: int, _data: object) -> None:
        self.blocks.append((address, size))

    def run(self, name: str) -> None:
        """Run once more, from what the run before has left, with and without a block hook."""
        uc = self.uc
        for hook in (None, uc.hook_add(UC_HOOK_BLOCK, self._began)):
            uc.reg_write(UC_X86_REG_RSP, self.base + 0x10_2000)
            uc.emu_start(self.base, self.end)
            print(
                name, uc.reg_read(UC_X86_REG_EBP), uc.reg_read(UC_X86_REG_RIP) - self.base,
                bytes(uc.mem_read(self.base + FUNCTION, 6)).hex(), len(self.blocks), hash(tuple(self.blocks)),
                len(self.stores), hash(tuple(self.stores)),
            )  # fmt: skip
            if hook is not None:
                uc.hook_del(hook)


def users() -> list[User]:
    """One whose RAM begins at 0, one far away with a hook on memory, one of each other mixture."""
    return [User(base, hooked=hooked) for base in (0, FAR) for hooked in (False, True)]


def run_arm() -> None:
    """Another processor: its functions have names of their own in the library."""
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    uc.mem_map(0x10000, 0x2000)
    uc.mem_write(0x10000, b"".join(word.to_bytes(4, "little") for word in (0xD2800540, 0x91000400)))
    uc.emu_start(0x10000, 0x10008)
    print("arm", uc.reg_read(UC_ARM64_REG_X0))


def main() -> None:
    before = users()
    before[0].run("first of all")
    if sys.argv[1] == "with pyhv":
        from bare_engine import Bare

        pyhvs = [Bare(count_blocks=count) for count in (False, True)]
        for bare in pyhvs:
            bare.run("mov eax, 1; ud2")
    after = users()
    for turn in range(2):
        for when, group in (("before", before), ("after", after)):
            for number, user in enumerate(group):
                user.run(f"{when} {number}, turn {turn}")
        run_arm()
        if sys.argv[1] == "with pyhv":
            for bare in pyhvs:
                bare.run("mov eax, 1; ud2")
                bare.close() if turn else None
    for user in before + after:
        user.uc.ctl_flush_tb()  # type: ignore[attr-defined]
        user.run("flushed")


main()
