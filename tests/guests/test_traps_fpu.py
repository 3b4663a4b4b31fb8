# SPDX-License-Identifier: GPL-2.0-only
"""The FPU of a new vCPU: as Xen 4.17 leaves it, or as VCPUOP_initialise says."""

import struct

import pytest

from pyhv.abi import shared
from pyhv.abi.numbers import VcpuOp
from pyhv.abi.shared import CONTEXT_LAYOUT
from pyhv.cpu import vmcb as v
from pyhv.testing.compat_machine import paused32
from pyhv.testing.guest_machine import paused

SAVE = {64: b"\x48\x0f\xae\x03", 32: b"\x0f\xae\x03"}  # FXSAVE64 or FXSAVE at RBX


def number(value: int) -> bytes:
    """An 80-bit floating-point number."""
    return struct.pack("<QH", 1 << 63, 0x3FFF) if value == 1 else struct.pack("<QH", value, 0x4005)


def image(*, word_size: int = 0, mxcsr: int = 0x9FA5) -> bytes:
    """A FXSAVE image with another value in each field: top of stack is 5, ST0 and ST1 are in use."""
    head = struct.pack(
        "<HHBBHQQII", 0x0A7F, 0x2D05, 0b0110_0000, 0, 0x123, 0x4_1111_2222, 0x8_3333_4444, mxcsr, 0
    )
    body = b"".join(number((1 << 63) + n).ljust(16, b"\0") for n in range(8))
    body += b"".join(bytes([0xA0 + n]) * 16 for n in range(16))
    return (head + body).ljust(511, b"\0") + bytes([word_size])


def started(width: int, fpu: bytes, flags: int) -> tuple[bytes, bytes]:
    """FXSAVE of a vCPU that VCPUOP_initialise gave `fpu`, and afterwards of the first one."""
    with (paused if width == 64 else paused32)(vcpus=2) as guest:
        layout = CONTEXT_LAYOUT[width]
        raw = bytearray(layout.size)
        raw[: len(fpu)] = fpu
        names = shared.USER_REGS if width == 64 else shared.USER_REGS_32
        word = width // 8

        def put(at: int, value: int) -> None:
            raw[at : at + word] = value.to_bytes(word, "little")

        end = guest.load(SAVE[width])
        letter = "r" if width == 64 else "e"
        ring = (0xE033, 0xE02B) if width == 64 else (0xE019, 0xE021)
        registers = {
            letter + "ip": guest.scratch + 0x8000, letter + "sp": guest.stack, letter + "bx": guest.page(2),
            "cs": ring[0], "ss": ring[1], "ds": ring[1],
        }  # fmt: skip
        for name, value in registers.items():
            put(layout.user_regs + names[name], value)
        put(layout.flags, flags | shared.VGCF_IN_KERNEL)
        mfn = guest.vcpu.paging.kernel_l4
        put(layout.ctrlreg + 3 * word, mfn << 12 | (0 if width == 64 else mfn >> 20))
        assert guest.vcpu_op(VcpuOp.INITIALISE, 1, guest.put(bytes(raw), 0x4000)) == 0
        second = guest.domain.vcpus[1]
        assert guest.vcpu_op(VcpuOp.UP, 1, 0) == 0
        saved = []
        for vcpu in (second, guest.vcpu):
            guest.dispatcher.load(vcpu)
            guest.q[v.RIP], guest.q[v.RSP] = guest.scratch + 0x8000, guest.stack
            guest.q[v.RBX] = guest.page(2)
            assert guest.go(end) is None
            saved.append(guest.get(512, 0x2000))
        return saved[0], saved[1]


@pytest.mark.parametrize("width", [64, 32])
def test_a_vcpu_starts_with_the_fpu_as_fninit_leaves_it(width: int) -> None:
    """The image does not count without its flag."""
    for saved in started(width, image(), 0):
        fcw, fsw, tags = struct.unpack_from("<HHB", saved)
        assert (fcw, fsw, tags) == (0x37F, 0, 0)
        assert struct.unpack_from("<I", saved, 24) == (0x1F80,)
        assert (
            saved[32 : 160 + 16 * (16 if width == 64 else 8)].count(0) == len(saved[32:160]) + 16 * width // 4
        )


@pytest.mark.parametrize("width", [64, 32])
def test_an_image_is_loaded(width: int) -> None:
    given = image()
    saved, first = started(width, given, shared.VGCF_I387_VALID)
    assert saved[:5] == given[:5]
    assert saved[24:28] == given[24:28]
    for at in range(32, 160, 16):
        assert saved[at : at + 10] == given[at : at + 10]
    end = 160 + 16 * (16 if width == 64 else 8)
    assert saved[160:end] == given[160:end]
    assert struct.unpack_from("<H", first) == (0x37F,)


def test_reserved_bits_of_mxcsr_are_dropped() -> None:
    saved, _ = started(64, image(mxcsr=0xFFFF9FA5), shared.VGCF_I387_VALID)
    assert struct.unpack_from("<I", saved, 24) == (0x9FA5,)


@pytest.mark.parametrize("word_size", [0, 2, 4, 8])
def test_any_image_can_be_loaded(word_size: int) -> None:
    for fill in (b"\0", b"\xff", b"\xa5"):
        saved, _ = started(32, fill * 511 + bytes([word_size]), shared.VGCF_I387_VALID)
        assert saved[160:288] == fill * 128


@pytest.mark.parametrize("width", [64, 32])
def test_arithmetic_exceptions_come_to_the_guests_handlers(width: int) -> None:
    """1/0 unmasked: #XM at the instruction of SSE, #MF at the next one of the x87 unit that waits."""
    with (paused if width == 64 else paused32)() as guest:
        if not guest.domain.engine.tuned:
            pytest.skip("the emulator raises neither")
        guest.handlers()
        sp, word = ("rsp", 8) if width == 64 else ("esp", 4)
        divide = "mov eax, 0x3f800000; movd xmm0, eax; xorps xmm1, xmm1; divss xmm0, xmm1"
        code = f"push 0x1d80; ldmxcsr [{sp}]; {divide}; nop"
        assert guest.execute(code) == 19
        assert guest.frame()["rip" if width == 64 else "eip"] == guest.load(code) - 5
        assert guest.execute(f"push 0; stmxcsr [{sp}]; push 0x1f80; ldmxcsr [{sp}]; nop") is None
        memory = guest.domain.memory
        assert memory.read(guest.q[v.RSP] + word, 4) == struct.pack("<I", 0x1D84)
        code = f"push 0x37b; fninit; fldcw [{sp}]; push 0; fld1; fdiv dword ptr [{sp}]; nop; fwait; nop"
        assert guest.execute(code) == 16
        assert guest.frame()["rip" if width == 64 else "eip"] == guest.load(code) - 2
