# SPDX-License-Identifier: GPL-2.0-only
"""Writable page tables: a kernel stores into its read-only L1 tables, the hypervisor does it for it.

With vm_assist type 2 (`writable_pagetables`) on, a kernel-mode store that faults on an L1 frame is decoded,
its new value computed, and applied as an L1 update with all the checks of `mmu/tables.py`; the guest never
knows. A store of up to 8 naturally aligned bytes; anything else stays the page fault that it was.
"""

from typing import Final

from pyhv.abi.x86 import FLAG_AF, FLAG_CF, FLAG_OF, FLAG_PF, FLAG_SF, FLAG_ZF, PTE_P
from pyhv.address import MASK32, MASK64
from pyhv.cpu import vmcb as v
from pyhv.cpu.decode import StoreInstruction
from pyhv.errors import XenError
from pyhv.mmu.tables import PageTables
from pyhv.traps.guestcpu import GuestCpu

_ARITHMETIC: Final = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF
_BIT_OPS: Final = frozenset({"bts", "btr", "btc"})
_PLAIN: Final = frozenset({"mov", "movnti"})
_LOGIC: Final = frozenset({"and", "or", "xor"})


def effective_address(cpu: GuestCpu, store: StoreInstruction) -> int:
    """The linear address of the store's memory operand (without a bit offset)."""
    q, memory = cpu.vmcb.q, store.memory
    address = memory.displacement
    if memory.rip_relative:
        address += q[v.RIP] + store.length
    if memory.base is not None:
        address += q[memory.base]
    if memory.scaled is not None:
        address += q[memory.scaled] * memory.scale
    if memory.segment is not None:
        address += q[v.SEG_BASE[memory.segment]]
    return address & (MASK64 if memory_is_wide(cpu) else MASK32)


def memory_is_wide(cpu: GuestCpu) -> bool:
    """Whether the guest computes addresses of 64 bits."""
    return cpu.domain.width == 64


def emulate_store(cpu: GuestCpu, tables: PageTables, store: StoreInstruction, fault: int, entry: int) -> bool:
    """Apply `store`, which faulted at linear address `fault`, to the L1 entry at machine address `entry`.

    Returns False when this is no store that the assist covers or the new entry is refused: the guest gets
    its page fault.
    """
    size = store.size
    if store.name in _BIT_OPS:
        if store.register is not None:
            bit = cpu.vmcb.q[store.register] & (size * 8 - 1)
        else:
            bit = store.immediate & (size * 8 - 1)
    else:
        bit = 0
        if effective_address(cpu, store) != fault:
            return False
    if fault & (size - 1):
        return False
    shift = (fault & 7) * 8
    mask = (1 << size * 8) - 1
    word = cpu.domain.ram.q[entry >> 3]
    old = word >> shift & mask
    outcome = _compute(cpu, store, old, bit)
    if outcome is None:
        return False
    new, registers, flags = outcome
    if new is not None:
        value = word & ~(mask << shift) | new << shift
        try:
            tables.update_l1(entry, value)
        except XenError:
            halves_swapped = fault & 4 and size == 4 and store.name in _PLAIN and value & PTE_P
            if memory_is_wide(cpu) or not halves_swapped:
                return False
            # The upper half of a PAE entry first: not present until the lower half follows.
            tables.update_l1(entry, value & ~PTE_P)
    q = cpu.vmcb.q
    if flags is not None:
        cpu.vmcb.set_rflags(flags)
    for register, value, high in registers:
        _write_register(cpu, register, value, size, high)
    q[v.RIP] = (q[v.RIP] + store.length) & MASK64
    return True


def _source(cpu: GuestCpu, store: StoreInstruction) -> int:
    mask = (1 << store.size * 8) - 1
    if store.register is None:
        return store.immediate & mask
    value = cpu.vmcb.q[store.register]
    return (value >> 8 if store.high_byte else value) & mask


def _write_register(cpu: GuestCpu, register: int, value: int, size: int, high: bool) -> None:
    q = cpu.vmcb.q
    if size == 8:
        q[register] = value
    elif size == 4:
        q[register] = value & 0xFFFF_FFFF
    elif high:
        q[register] = q[register] & ~0xFF00 | (value & 0xFF) << 8
    else:
        mask = (1 << size * 8) - 1
        q[register] = q[register] & ~mask | value & mask


def _result_flags(value: int, size: int) -> int:
    flags = 0
    if value == 0:
        flags |= FLAG_ZF
    if value >> (size * 8 - 1) & 1:
        flags |= FLAG_SF
    if (value & 0xFF).bit_count() % 2 == 0:
        flags |= FLAG_PF
    return flags


def _sum_flags(a: int, b: int, size: int, *, subtract: bool) -> tuple[int, int]:
    """Result and arithmetic flags of a + b or a - b."""
    mask, top = (1 << size * 8) - 1, size * 8 - 1
    result = (a - b if subtract else a + b) & mask
    flags = _result_flags(result, size)
    if (a < b) if subtract else (a + b > mask):
        flags |= FLAG_CF
    overflow = (a ^ b) & (a ^ result) if subtract else ~(a ^ b) & (a ^ result)
    if overflow >> top & 1:
        flags |= FLAG_OF
    return result, flags | (a ^ b ^ result) & FLAG_AF


_Outcome = tuple[int | None, list[tuple[int, int, bool]], int | None]


def _compute(cpu: GuestCpu, store: StoreInstruction, old: int, bit: int) -> _Outcome | None:
    """(new value or None, register writes, RFLAGS or None) of the store; None if not covered."""
    name, size = store.name, store.size
    if name in ("mov", "movabs", "movnti"):
        return _source(cpu, store), [], None
    if name == "xchg" and store.register is not None:
        return _source(cpu, store), [(store.register, old, store.high_byte)], None
    rflags = cpu.engine.rflags()
    clear = rflags & ~_ARITHMETIC
    if name in _LOGIC:
        source = _source(cpu, store)
        new = {"and": old & source, "or": old | source, "xor": old ^ source}[name]
        return new, [], clear | _result_flags(new, size)
    if name in _BIT_OPS:
        carry = FLAG_CF if old >> bit & 1 else 0
        new = {"bts": old | 1 << bit, "btr": old & ~(1 << bit), "btc": old ^ 1 << bit}[name]
        return new, [], rflags & ~FLAG_CF | carry
    if name in ("add", "sub"):
        new, flags = _sum_flags(old, _source(cpu, store), size, subtract=name == "sub")
        return new, [], clear | flags
    if name in ("inc", "dec"):
        new, flags = _sum_flags(old, 1, size, subtract=name == "dec")
        return new, [], clear | flags & ~FLAG_CF | rflags & FLAG_CF
    if name == "not":
        return ~old & (1 << size * 8) - 1, [], None
    if name == "neg":
        new, flags = _sum_flags(0, old, size, subtract=True)
        return new, [], clear | flags
    if name == "xadd" and store.register is not None:
        new, flags = _sum_flags(old, _source(cpu, store), size, subtract=False)
        return new, [(store.register, old, store.high_byte)], clear | flags
    if name == "cmpxchg":
        return _compare_exchange(cpu, store, old, clear)
    if name == "cmpxchg8b":
        q = cpu.vmcb.q
        expected = (q[v.RDX] & 0xFFFF_FFFF) << 32 | q[v.RAX] & 0xFFFF_FFFF
        if old == expected:
            return (q[v.RCX] & 0xFFFF_FFFF) << 32 | q[v.RBX] & 0xFFFF_FFFF, [], rflags | FLAG_ZF
        q[v.RAX], q[v.RDX] = old & 0xFFFF_FFFF, old >> 32
        return None, [], rflags & ~FLAG_ZF
    return None


def _compare_exchange(cpu: GuestCpu, store: StoreInstruction, old: int, clear: int) -> _Outcome:
    accumulator = cpu.vmcb.q[v.RAX] & (1 << store.size * 8) - 1
    _, flags = _sum_flags(accumulator, old, store.size, subtract=True)
    if accumulator == old:
        return _source(cpu, store), [], clear | flags
    return None, [(v.RAX, old, False)], clear | flags
