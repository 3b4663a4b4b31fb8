# SPDX-License-Identifier: GPL-2.0-only
"""Structure layouts for 64-bit and 32-bit guests from one description.

A structure of the Xen public headers is a class whose annotations name the C types; `AbiStruct` computes
both layouts by the System V rules (on i386 a `uint64_t` aligns to 4 unless the header says
`uint64_aligned_t`). `tests/unit/test_abi.py` compares sizes and offsets with the published ones. Nothing here
knows what a field means.
"""

import struct
import typing
from typing import Annotated, Any, ClassVar, Self

u8 = Annotated[int, "B", "B", 1, 1]
s8 = Annotated[int, "b", "b", 1, 1]
u16 = Annotated[int, "H", "H", 2, 2]
s16 = Annotated[int, "h", "h", 2, 2]
u32 = Annotated[int, "I", "I", 4, 4]
s32 = Annotated[int, "i", "i", 4, 4]
u64 = Annotated[int, "Q", "Q", 8, 4]
u64_aligned = Annotated[int, "Q", "Q", 8, 8]
ulong = Annotated[int, "Q", "I", 8, 4]
pointer = Annotated[int, "Q", "I", 8, 4]
"""C types: (format in 64-bit, format in 32-bit, alignment in 64-bit, alignment in 32-bit)."""
char32 = Annotated[bytes, "32s", "32s", 1, 1]
char1024 = Annotated[bytes, "1024s", "1024s", 1, 1]
"""C arrays of characters; shorter text is followed by NULs."""
control_union = Annotated[bytes, "128s", "128s", 8, 8]
evtchn_union = Annotated[bytes, "24s", "24s", 4, 4]
physdev_union = Annotated[bytes, "16s", "12s", 8, 4]
"""Unions of commands' structures, as large and as aligned as their largest and most aligned members."""
u16_after_struct = Annotated[int, "H", "H", 8, 4]
"""A `uint16_t` behind a nested structure that holds an `unsigned long`, and so ends in padding."""

u32_before_pointer = Annotated[int, "I", "I", 8, 4]
"""A `uint32_t` that begins a nested structure with a pointer, and is aligned as that is."""


class StructLayout:
    """One structure as one guest class sees it: `size` in bytes, `offsets` by field, `packer`."""

    def __init__(self, fields: list[tuple[str, str, int]]) -> None:
        self.offsets: dict[str, int] = {}
        pattern, at, widest = "<", 0, 1
        for name, code, align in fields:
            pad = -at % align
            pattern += f"{pad}x{code}" if pad else code
            self.offsets[name] = at + pad
            at += pad + struct.calcsize("<" + code)
            widest = max(widest, align)
        tail = -at % widest
        self.size = at + tail
        self.packer = struct.Struct(pattern + (f"{tail}x" if tail else ""))


class AbiStruct:
    """Base of all ABI structures; subclasses only annotate their fields.

    `layout64` and `layout32` are class attributes. `unpack` and `pack` take the guest's width (64 or 32).
    Fields that are not given to the constructor are 0.
    """

    layout64: ClassVar[StructLayout]
    layout32: ClassVar[StructLayout]
    names: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        wide, narrow = [], []
        for name, hint in typing.get_type_hints(cls, include_extras=True).items():
            if typing.get_origin(hint) is ClassVar:
                continue
            code64, code32, align64, align32 = typing.get_args(hint)[1:]
            wide.append((name, code64, align64))
            narrow.append((name, code32, align32))
        cls.names = tuple(name for name, _, _ in wide)
        cls.layout64, cls.layout32 = StructLayout(wide), StructLayout(narrow)

    def __init__(self, **values: int | bytes) -> None:
        for name in self.names:
            setattr(self, name, values.pop(name, 0))
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")

    @classmethod
    def layout(cls, width: int) -> StructLayout:
        """The layout for a guest of `width` bits."""
        return cls.layout64 if width == 64 else cls.layout32

    @classmethod
    def size(cls, width: int = 64) -> int:
        """Size in bytes."""
        return cls.layout(width).size

    @classmethod
    def unpack(cls, raw: bytes | memoryview, width: int = 64) -> Self:
        """Read one structure from exactly `size(width)` bytes."""
        return cls.of(cls.layout(width).packer.unpack(raw))

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Self:
        """Make a structure of its fields' values, in their order."""
        self = cls.__new__(cls)
        for name, value in zip(cls.names, values, strict=True):
            setattr(self, name, value)
        return self

    def pack(self, width: int = 64) -> bytes:
        """The structure's bytes, padding zeroed."""
        return self.layout(width).packer.pack(*(getattr(self, name) for name in self.names))

    def __repr__(self) -> str:
        values = ((name, getattr(self, name)) for name in self.names)
        inner = ", ".join(f"{name}={v:#x}" if isinstance(v, int) else f"{name}={v!r}" for name, v in values)
        return f"{type(self).__name__}({inner})"
