# SPDX-License-Identifier: GPL-2.0-only
"""No guest code ends the process: where the emulator would call `abort`, the guest gets #UD.

Unicorn 2.1.4 aborts when it translates `LOCK BT`, `BTS`, `BTR` or `BTC` with a register operand, two bytes
and a prefix that any process may execute. On hardware that is #UD. So the library's own pointer to `abort`
(its slot in the procedure linkage table) is led to eight instructions that raise #UD in the engine that is
running, the way the emulator leaves a translation that hits an unmapped page, and to the real `abort` when
none runs. Specified by nothing but that build; where it does not fit - another host, no such slot, the
emulator's own functions not exported - nothing is changed and `guard` says so.
"""

import ctypes
import functools
import mmap
import platform
import struct

import keystone

from pyhv.cpu import binding

_UD = 6
_RELOCATION = struct.Struct("<QQq")
_DT_STRTAB, _DT_SYMTAB, _DT_JMPREL, _DT_PLTRELSZ = 5, 6, 23, 2
_PT_DYNAMIC = 2
_SYMBOL_SIZE = 24

_CODE = """
    movabs rax, {cell}
    mov rdi, [rax]
    test rdi, rdi
    jz really
    mov esi, {vector}
    xor edx, edx
    movabs rax, {raise_exception}
    jmp rax
really:
    movabs rax, {abort}
    jmp rax
"""


class _DlInfo(ctypes.Structure):
    _fields_ = [  # the form that ctypes asks for
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    ]


class Guard:
    """`running[0]` is the address of the state block of the engine that executes guest code, 0 if none does.

    `active`: an abort meanwhile becomes #UD.
    """

    def __init__(self) -> None:
        self._cell = ctypes.c_uint64(0)
        self.running = memoryview(self._cell).cast("B").cast("Q")
        self._code: mmap.mmap | None = None
        self.active = self._install()

    def _install(self) -> bool:
        raise_exception = binding.raise_exception_address
        if platform.machine() != "x86_64" or raise_exception is None:
            return False
        slot = _slot_of("abort")
        if slot is None:
            return False
        source = _CODE.format(
            cell=ctypes.addressof(self._cell), vector=_UD, raise_exception=raise_exception,
            abort=ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value,
        )  # fmt: skip
        try:
            code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError:
            return False
        encoding, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(source)
        code.write(bytes(encoding))
        self._code = code
        slot.value = ctypes.addressof(ctypes.c_char.from_buffer(code))
        return True


def _slot_of(name: str) -> ctypes.c_uint64 | None:
    """The library's pointer to an imported function, if it is there and may be written."""
    info = _DlInfo()
    if not ctypes.CDLL(None).dladdr(ctypes.cast(binding.uc_open, ctypes.c_void_p), ctypes.byref(info)):
        return None
    base: int = info.dli_fbase or 0
    header = ctypes.string_at(base, 64)
    if header[:5] != b"\x7fELF\x02":
        return None
    tables: dict[int, int] = {}
    first, size, count = struct.unpack_from("<Q14xHH", header, 32)
    for number in range(count):
        kind, _, _, vaddr, _, _, length = struct.unpack_from(
            "<IIQQQQQ", ctypes.string_at(base + first + size * number, 56)
        )
        if kind == _PT_DYNAMIC:
            tables = dict(struct.iter_unpack("<QQ", ctypes.string_at(base + vaddr, length)))
    if not all(tag in tables for tag in (_DT_STRTAB, _DT_SYMTAB, _DT_JMPREL, _DT_PLTRELSZ)):
        return None
    wanted = name.encode()
    for tag in (_DT_STRTAB, _DT_SYMTAB, _DT_JMPREL):  # addresses, which not every loader has relocated
        if tables[tag] < base:
            tables[tag] += base
    relocations = ctypes.string_at(tables[_DT_JMPREL], tables[_DT_PLTRELSZ])
    for at, what, _ in _RELOCATION.iter_unpack(relocations):
        symbol = tables[_DT_SYMTAB] + (what >> 32) * _SYMBOL_SIZE
        offset = ctypes.c_uint32.from_address(symbol).value
        if ctypes.string_at(tables[_DT_STRTAB] + offset, len(wanted) + 1) == wanted + b"\0":
            return ctypes.c_uint64.from_address(base + at) if _writable(base + at) else None
    return None


def _writable(address: int) -> bool:
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            span, flags, *_ = line.split(maxsplit=2)
            start, end = (int(bound, 16) for bound in span.split("-"))
            if start <= address < end:
                return "w" in flags
    return False


@functools.cache
def guard() -> Guard:
    """The process's guard, installed at the first call."""
    return Guard()
