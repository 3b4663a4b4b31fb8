# SPDX-License-Identifier: GPL-2.0-only
"""Privileged instructions that the hypervisor performs for a kernel, and all those that it does not."""

from collections.abc import Iterator

import pytest

from pyhv.abi.numbers import Assist, Physdev
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble
from pyhv.testing.guest_machine import Paused, paused
from pyhv.testing.vectors import GP, NM, PF, UD

CODE = 0x8000


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        made.handlers()
        yield made


def refused(guest: Paused, code: str | bytes, vector: int = GP, offset: int = 0) -> None:
    """The code raises an exception without error code (or with 0), `offset` bytes from its beginning."""
    assert guest.execute(code) == vector
    frame = guest.frame(error=vector == GP)
    assert frame["rip"] == guest.scratch + CODE + offset
    assert frame.get("error", 0) == 0


def value(guest: Paused, code: str) -> int:
    """RAX after the code."""
    assert guest.execute(code) is None
    return guest.q[v.RAX]


def rdmsr(guest: Paused, number: int) -> int | None:
    """The MSR, or None if reading it is refused."""
    if guest.execute(f"mov ecx, {number:#x}; rdmsr; shl rdx, 32; or rax, rdx") == GP:
        return None
    return guest.q[v.RAX]


def wrmsr(guest: Paused, number: int, wanted: int) -> bool:
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    return guest.execute(f"mov ecx, {number:#x}; mov eax, {low:#x}; mov edx, {high:#x}; wrmsr") is None


# -- control registers -------------------------------------------------------------------------------------


def test_cr0_as_a_guest_reads_it(guest: Paused) -> None:
    assert value(guest, "mov rax, cr0") == 0x80050033
    guest.fpu_taskswitch(1)
    assert value(guest, "mov rax, cr0") == 0x8005003B


@pytest.mark.parametrize("bits", [0x80050033, 0x8005003B])
def test_cr0_task_switched_can_be_written(guest: Paused, bits: int) -> None:
    assert guest.execute(f"mov eax, {bits:#x}; mov cr0, rax") is None
    assert guest.execute("fld1") == (NM if bits & 8 else None)


@pytest.mark.parametrize("bit", [0, 1, 2, 4, 5, 16, 18, 29, 30, 31, 40, 63])
def test_no_other_bit_of_cr0_can_be_changed(guest: Paused, bit: int) -> None:
    assert guest.execute(f"mov rax, {0x80050033 ^ 1 << bit:#x}; mov cr0, rax") == GP
    assert guest.frame(error=True)["error"] == 0


def test_unikraft_writes_cr0_and_cr4_back(guest: Paused) -> None:
    code = "mov rax, cr0; and eax, 0xfffffff3; or eax, 0x22; mov cr0, rax"
    assert guest.execute(code + "; mov rax, cr4; or eax, 0x600; mov cr4, rax") is None


def test_clts(guest: Paused) -> None:
    guest.fpu_taskswitch(1)
    assert guest.execute("clts; fld1") is None


def test_cr2_is_the_guests_own(guest: Paused) -> None:
    assert guest.execute("mov rax, 0x123456789; mov cr2, rax; xor eax, eax; mov rax, cr2") is None
    assert guest.q[v.RAX] == 0x123456789
    assert guest.vcpu.info.cr2 == 0x123456789


def test_cr3_names_the_kernel_table(guest: Paused) -> None:
    assert value(guest, "mov rax, cr3") == guest.vcpu.paging.kernel_l4 << 12
    assert guest.execute("mov rax, cr3; mov cr3, rax") is None
    refused(guest, "mov eax, 0x1000; mov cr3, rax", offset=5)
    refused(guest, "mov rax, -1; mov cr3, rax", offset=7)


def test_cr4_drops_what_may_not_be_set(guest: Paused) -> None:
    assert value(guest, "mov rax, cr4") == 0x660
    assert value(guest, "mov rax, -1; mov cr4, rax; mov rax, cr4") == 0x66C
    assert value(guest, "xor eax, eax; mov cr4, rax; mov rax, cr4") == 0x660


@pytest.mark.parametrize("code", ["mov rax, cr8", "mov cr8, rax"])
def test_cr8_does_not_exist(guest: Paused, code: str) -> None:
    refused(guest, code)


def test_wrfsbase_is_not_there(guest: Paused) -> None:
    refused(guest, b"\xf3\x48\x0f\xae\xd0", UD)


# -- instructions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    ["hlt", "invlpg [rbx]", "lgdt [rbx]", "lidt [rbx]", "ltr ax", "lmsw ax", "swapgs", "invd"],
)
def test_what_is_not_emulated_stays_a_protection_fault(guest: Paused, code: str) -> None:
    refused(guest, code)


@pytest.mark.parametrize("code", ["cli", "sti", "wbinvd", b"\xf3\x0f\x09", "rdtsc", "rdtscp"])
def test_what_is_emulated_takes_its_length(guest: Paused, code: str | bytes) -> None:
    guest.vcpu.ports.iopl = 1
    assert guest.execute(code) is None


@pytest.mark.parametrize("code", ["cli", "sti", "in al, 0x80", "out 0x80, al", "in eax, dx"])
@pytest.mark.parametrize(("iopl", "kernel", "user"), [(0, 0, 0), (1, 1, 0), (2, 1, 0), (3, 1, 1)])
def test_virtual_iopl(guest: Paused, code: str, iopl: int, kernel: int, user: int) -> None:
    guest.allow_user_mode()
    guest.vcpu.ports.iopl = iopl
    assert guest.execute(code) == (None if kernel else GP)
    assert guest.user(code) == (None if user else GP)


def test_a_kernel_with_architectural_iopl_is_in_ring_0(guest: Paused) -> None:
    guest.domain.assists.enabled.add(Assist.ARCHITECTURAL_IOPL)
    assert guest.execute("in al, 0x80") is None


def test_cli_does_not_mask_events(guest: Paused) -> None:
    guest.vcpu.ports.iopl = 1
    guest.vcpu.info.upcall_masked = False
    guest.execute("cli")
    assert not guest.vcpu.info.upcall_masked
    assert guest.domain.engine.rflags() & 0x200


def test_xsetbv_and_xgetbv_are_not_offered(guest: Paused) -> None:
    refused(guest, b"\x0f\x01\xd1", UD)
    refused(guest, b"\x0f\x01\xd0", UD)


@pytest.mark.promise("T-11")
def test_time_stamp_counter(guest: Paused) -> None:
    assert (
        guest.execute("mov rax, -1; mov rdx, -1; rdtsc; shl rdx, 32; or rax, rdx; mov r8, rax; rdtsc") is None
    )
    assert 0 < guest.q[v.R8] < 1 << 40
    assert guest.q[v.RAX] >= guest.q[v.R8]
    guest.allow_user_mode()
    assert guest.user("rdtsc") is None
    assert guest.user("rdtscp") is None


def test_a_kernel_can_forbid_the_time_stamp_counter_to_user_mode(guest: Paused) -> None:
    guest.allow_user_mode()
    set_tsd = "mov rax, cr4; or eax, 4; mov cr4, rax;"
    assert guest.execute(set_tsd + "mov rax, -1; mov rdx, -1; rdtsc; rdtscp") is None
    assert 0 < guest.q[v.RDX] << 32 | guest.q[v.RAX] < 1 << 40
    assert guest.user("rdtsc") == GP
    assert guest.user("rdtscp") == GP
    assert guest.execute("mov rax, cr4; xor eax, 4; mov cr4, rax") is None
    assert guest.user("rdtsc; rdtscp") is None


@pytest.mark.parametrize("kernel", [True, False])
def test_the_time_stamp_counter_is_read_across_the_end_of_a_page(guest: Paused, kernel: bool) -> None:
    guest.allow_user_mode()
    code = "mov eax, -1; mov edx, -1;" + "nop;" * (4096 - 10 - 1) + "rdtsc"
    assert (guest.execute if kernel else guest.user)(code) is None
    assert 0 < guest.q[v.RDX] << 32 | guest.q[v.RAX] < 1 << 40


def test_an_int_13_before_an_rdtsc_is_none(guest: Paused) -> None:
    """RIP is behind the one then, and at the other."""
    assert guest.execute("mov rax, -1; int 13; rdtsc") == GP
    assert guest.frame(error=True)["error"] == GP << 3 | 2
    assert guest.q[v.RAX] == (1 << 64) - 1


def test_rdtscp_gives_tsc_aux(guest: Paused) -> None:
    assert guest.execute("mov ecx, 0xc0000103; mov eax, 7; xor edx, edx; wrmsr; rdtscp") is None
    assert guest.q[v.RCX] == 7


@pytest.mark.parametrize(
    "code",
    ["mov rax, cr0", "mov cr2, rax", "clts", "rdmsr", "wrmsr", "mov rax, dr6", "mov dr6, rax", "wbinvd"],
)
def test_user_mode_may_not(guest: Paused, code: str) -> None:
    guest.allow_user_mode()
    guest.vcpu.ports.iopl = 3
    guest.q[v.RCX] = 0x10
    assert guest.user("mov ecx, 0x10;" + code) == GP
    assert guest.frame(error=True)["rip"] == guest.scratch + CODE + 5


# -- CPUID -------------------------------------------------------------------------------------------------

FORCED = b"\x0f\x0bxen"


def cpuid(guest: Paused, leaf: int, subleaf: int = 0, prefix: bytes = FORCED) -> tuple[int, int, int, int]:
    code = (
        b"\xb8" + leaf.to_bytes(4, "little") + b"\xb9" + subleaf.to_bytes(4, "little") + prefix + b"\x0f\xa2"
    )
    assert guest.execute(code) is None
    rax, rcx, rdx, rbx = guest.q[0:4]
    return rax, rbx, rcx, rdx


def test_forced_and_native_cpuid_agree(guest: Paused) -> None:
    for leaf in (0, 1, 2, 4, 7, 0xD, 0x40000000, 0x40000001, 0x40000003, 0x80000000, 0x80000001, 0x80000008):
        assert cpuid(guest, leaf) == cpuid(guest, leaf, prefix=b"")


def test_cpuid_leaves_of_xen(guest: Paused) -> None:
    assert cpuid(guest, 0x40000000) == (0x40000005, 0x566E6558, 0x65584D4D, 0x4D4D566E)
    assert cpuid(guest, 0x40000001)[0] == 4 << 16 | 17
    assert cpuid(guest, 0x40000002)[:2] == (1, 0x40000000)
    assert cpuid(guest, 0x40000002)[2] & 1
    tsc = cpuid(guest, 0x40000003)
    assert tsc[2] == 1_000_000
    assert cpuid(guest, 0x40000005)[1] & 0xFF >= 36
    assert cpuid(guest, 0x40000100) == (0, 0, 0, 0)


def test_cpuid_offers_what_a_pv_guest_can_use_and_no_more(guest: Paused) -> None:
    _, _, ecx, edx = cpuid(guest, 1)
    offered = {
        "fpu": 0,
        "de": 2,
        "tsc": 4,
        "msr": 5,
        "pae": 6,
        "mce": 7,
        "cx8": 8,
        "apic": 9,
        "mca": 14,
        "sep": 11,
        "cmov": 15,
        "sse2": 26,
    }
    assert all(edx >> bit & 1 for bit in offered.values())
    hidden = {"vme": 1, "pse": 3, "mtrr": 12, "pge": 13, "pse36": 17}
    assert not any(edx >> bit & 1 for bit in hidden.values())
    assert ecx >> 31 & 1, "hypervisor"
    assert all(ecx >> bit & 1 for bit in (0, 9, 13, 19, 20, 23)), "x86-64-v2"
    forbidden = {
        "monitor": 3,
        "vmx": 5,
        "pcid": 17,
        "deadline": 24,
        "xsave": 26,
        "osxsave": 27,
        "avx": 28,
        "rdrand": 30,
    }
    assert not any(ecx >> bit & 1 for bit in forbidden.values())
    assert cpuid(guest, 7)[1] & (1 | 1 << 7 | 1 << 10 | 1 << 20) == 0, "fsgsbase, smep, invpcid, smap"
    extended = cpuid(guest, 0x80000001)[3]
    assert all(extended >> bit & 1 for bit in (11, 20, 29)), "syscall, nx, lm"
    assert not extended >> 26 & 1, "1 GiB pages"
    _, ebx, ecx, edx = cpuid(guest, 0)
    assert b"".join(one.to_bytes(4, "little") for one in (ebx, edx, ecx)) == b"GenuineIntel"


def test_only_cpuid_may_follow_the_prefix(guest: Paused) -> None:
    refused(guest, FORCED + b"\x89\xc0", UD)
    refused(guest, FORCED, UD)
    refused(guest, b"\x0f\x0bxe", UD)


@pytest.mark.parametrize(
    ("code", "vector"),
    [(b"\x0f\x0b", UD), (b"\x0f\x0bxe", UD), (FORCED, PF), (FORCED + b"\x0f", PF), (b"\x0f\xff\xc0", UD)],
)
def test_only_the_whole_prefix_wants_what_is_behind_it(guest: Paused, code: bytes, vector: int) -> None:
    """UD2 as a page's last instruction is #UD, whether there is a next page or not."""
    assert guest.update_va_mapping(guest.page(3), 0, 2) == 0
    guest.put(code, 0x3000 - len(code))
    guest.q[v.RIP], guest.q[v.RSP] = guest.page(3) - len(code), guest.stack
    assert guest.go() == vector
    if vector == PF:
        assert guest.vcpu.info.cr2 == guest.page(3)


# -- debug registers ---------------------------------------------------------------------------------------


def test_debug_registers(guest: Paused) -> None:
    assert value(guest, "mov rax, dr6") == 0xFFFF0FF0
    assert value(guest, "mov rax, dr7") == 0x400
    for number in range(4):
        assert value(
            guest, f"mov eax, {0x1000 + number}; mov dr{number}, rax; xor eax, eax; mov rax, dr{number}"
        ) == (0x1000 + number)
    assert value(guest, "mov eax, 0x55; mov dr7, rax; mov rax, dr7") == 0x455
    assert value(guest, "mov eax, 0xffffffff; mov dr6, rax; mov rax, dr6") == 0xFFFFEFFF


@pytest.mark.parametrize(
    ("register", "written"),
    [
        (0, 0xFFFF800000000000),
        (3, 0xFFFF87FFFFFFFFFF),
        (0, 0x800000000000),
        (6, 1 << 32),
        (7, 1 << 32),
        (7, 1 << 13),
        (7, 1 << 17 | 3),
    ],
)
def test_values_that_debug_registers_refuse(guest: Paused, register: int, written: int) -> None:
    assert guest.execute(f"mov rax, {written:#x}; mov dr{register}, rax") == GP
    errno = 22 if register > 3 and written >> 32 else 1
    assert guest.set_debugreg(register, written) == -errno


def test_debug_registers_by_hypercall(guest: Paused) -> None:
    assert guest.set_debugreg(0, 0x5000) == 0
    assert guest.get_debugreg(0) == 0x5000
    assert guest.get_debugreg(4) == guest.get_debugreg(6) == 0xFFFF0FF0
    assert guest.get_debugreg(5) == guest.get_debugreg(7) == 0x400
    assert guest.get_debugreg(8) == guest.set_debugreg(8, 0) == -19
    guest.vcpu.cr4 |= 8
    assert guest.get_debugreg(4) == guest.set_debugreg(5, 0x400) == -19
    assert guest.set_debugreg(7, 1 << 17 | 3) == 0


def test_dr4_with_debugging_extensions_is_an_invalid_opcode(guest: Paused) -> None:
    guest.vcpu.cr4 |= 8
    refused(guest, "mov rax, dr4", UD)


# -- ports -------------------------------------------------------------------------------------------------


@pytest.mark.promise("I-9")
def test_ports_that_a_domain_does_not_own_read_as_ones(guest: Paused) -> None:
    guest.vcpu.ports.iopl = 1
    assert value(guest, "xor eax, eax; mov edx, 0x3f8; in al, dx") == 0xFF
    assert value(guest, "xor eax, eax; mov edx, 0x3f8; in ax, dx") == 0xFFFF
    assert value(guest, "xor eax, eax; mov edx, 0x3f8; in eax, dx") == 0xFFFFFFFF


def test_pci_configuration_address_is_latched(guest: Paused) -> None:
    guest.vcpu.ports.iopl = 1
    code = "mov edx, 0xcf8; mov eax, 0x80001234; out dx, eax; xor eax, eax; in eax, dx"
    assert value(guest, code) == 0x80001234
    assert value(guest, "mov edx, 0xcfc; xor eax, eax; in eax, dx") == 0xFFFFFFFF


@pytest.mark.promise("I-9")
def test_io_bitmap(guest: Paused) -> None:
    """A clear bit permits; the bits of all bytes of the access must be clear."""
    guest.allow_user_mode()
    bitmap = guest.put(b"\xff" * 16 + b"\xf7\xfe" + b"\xff" * 14)  # ports 0x83 and 0x88 are permitted
    request = guest.put(bitmap.to_bytes(8, "little") + (0x100).to_bytes(8, "little"), 0x100)
    assert guest.physdev_op(Physdev.SET_IOBITMAP, request) == 0
    for run in (guest.execute, guest.user):
        assert run("in al, 0x83") is None
        assert run("out 0x88, al") is None
        assert run("in al, 0x82") == GP
        assert run("in ax, 0x83") == GP
        assert run("mov edx, 0x100; in al, dx") == GP
    guest.put(b"\xff" * 32)
    assert guest.user("in al, 0x83") == GP


def test_an_io_bitmap_that_is_not_mapped_permits_nothing(guest: Paused) -> None:
    request = guest.put((0x7FFF00000000).to_bytes(8, "little") + (65536).to_bytes(8, "little"))
    assert guest.physdev_op(Physdev.SET_IOBITMAP, request) == 0
    assert guest.execute("in al, 0x80") == GP


def test_a_refused_port_then_a_hypercall(guest: Paused) -> None:
    """The hypercall in the same block must not be performed: the guest never got there."""
    before = guest.dispatcher.hypercalls[17]
    assert guest.execute("mov eax, 17; mov rdi, 0; in al, 0x80; mov eax, 17; syscall") == GP
    assert guest.dispatcher.hypercalls[17] == before
    assert guest.frame(error=True)["rip"] == guest.scratch + CODE + 12


def test_an_unreadable_second_byte_of_the_io_bitmap_forbids_only_its_ports(guest: Paused) -> None:
    assert guest.update_va_mapping(guest.page(4), 0, 2) == 0
    bitmap = guest.put(b"\x00" * 16, 0x4000 - 16)
    request = guest.put(bitmap.to_bytes(8, "little") + (0x200).to_bytes(8, "little"), 0x100)
    assert guest.physdev_op(Physdev.SET_IOBITMAP, request) == 0
    assert guest.execute("in al, 0x7f") is None
    assert guest.execute("in ax, 0x7e") is None
    assert guest.execute("in ax, 0x7f") == GP
    assert guest.execute("in al, 0x80") == GP


def test_the_io_bitmap_never_grants_its_last_port(guest: Paused) -> None:
    bitmap = guest.put(b"\x00" * 32)
    request = guest.put(bitmap.to_bytes(8, "little") + (0x84).to_bytes(8, "little"), 0x100)
    assert guest.physdev_op(Physdev.SET_IOBITMAP, request) == 0
    assert guest.execute("in al, 0x82") is None
    assert guest.execute("in al, 0x83") == GP
    assert guest.execute("in ax, 0x82") == GP


@pytest.mark.parametrize("user", [False, True])
def test_string_io(guest: Paused, user: bool) -> None:
    guest.allow_user_mode()
    guest.vcpu.ports.iopl = 3
    run = guest.user if user else guest.execute
    place = guest.put(bytes(8), 0x200)
    assert run(f"mov rdi, {place}; mov edx, 0x80; mov ecx, 5; rep insb") is None
    assert guest.get(8, 0x200) == b"\xff" * 5 + bytes(3)
    assert (guest.q[v.RDI], guest.q[v.RCX]) == (place + 5, 0)
    assert run(f"mov rsi, {place}; mov edx, 0x80; mov ecx, 2; rep outsw") is None
    assert guest.q[v.RSI] == place + 4
    guest.vcpu.ports.iopl = 0
    code = f"mov rsi, {place}; mov edx, 0x80; mov ecx, 2; rep outsb"
    assert run(code) == GP
    frame = guest.frame(error=True)
    assert (frame["rip"], frame["rcx"], guest.q[v.RSI]) == (guest.load(code) - 2, 2, place)


def test_a_page_fault_in_the_middle_of_string_input(guest: Paused) -> None:
    guest.vcpu.ports.iopl = 1
    assert guest.update_va_mapping(guest.page(4), 0, 2) == 0
    guest.put(bytes(8), 0x4000 - 8)
    assert guest.execute(f"mov rdi, {guest.page(4) - 3}; mov edx, 0x80; mov ecx, 5; rep insb") == 14
    assert guest.vcpu.info.cr2 == guest.page(4)
    assert guest.frame(error=True)["rcx"] == 2
    assert guest.get(8, 0x4000 - 8) == bytes(5) + b"\xff" * 3


@pytest.mark.parametrize("code", ["insb", "rep insb", "insd"])
def test_refused_string_input_changes_no_register(guest: Paused, code: str) -> None:
    place = guest.put(b"\x11" * 8, 0x200)
    raw = {"insb": b"\x6c", "rep insb": b"\xf3\x6c", "insd": b"\x6d"}[code]
    start = f"mov rdi, {place}; mov edx, 0x80; mov ecx, 5"
    prefix = assemble(start.replace(";", "\n"), guest.scratch + CODE)
    assert guest.execute(prefix + raw) == GP
    assert guest.q[v.RDI] == place
    assert guest.frame(error=True)["rip"] == guest.scratch + CODE + len(prefix)


def test_the_rtc_index_and_unequal_accesses(guest: Paused) -> None:
    guest.vcpu.ports.iopl = 1
    assert value(guest, "mov al, 0x8b; out 0x70, al; xor eax, eax; in al, 0x70") == 0x8B
    assert value(guest, "mov eax, 0x1234; out 0x6f, ax; xor eax, eax; in ax, 0x6f") == 0x12FF
    assert value(guest, "xor eax, eax; in ax, 0x70") == 0xFF12
    assert value(guest, "mov edx, 0xcf8; mov eax, -1; out dx, eax; xor eax, eax; in eax, dx") == 0xFFFFFFFF
    assert value(guest, "mov edx, 0xcf8; mov eax, 5; out dx, eax; xor eax, eax; in ax, dx") == 0xFFFF
    assert value(guest, "mov edx, 0xcf8; xor eax, eax; in eax, dx") == 5


# -- CPUID faulting ----------------------------------------------------------------------------------------


def test_cpuid_can_be_made_to_fault_in_user_mode(guest: Paused) -> None:
    guest.allow_user_mode()
    assert rdmsr(guest, 0xCE) == 1 << 31
    assert rdmsr(guest, 0x140) == 0
    assert guest.user("xor eax, eax; cpuid") is None
    assert guest.q[v.RAX] == 7
    guest.cpu.raise_exception(3)
    assert wrmsr(guest, 0x140, 1)
    assert rdmsr(guest, 0x140) == 1
    assert guest.execute("xor eax, eax; cpuid") is None
    for code, at in ((b"\x90\x0f\xa2", 1), (b"\x90" + FORCED + b"\x0f\xa2", 6)):
        assert guest.user(code) == GP
        assert guest.frame(error=True)["rip"] == guest.scratch + CODE + at
        assert guest.frame(error=True)["error"] == 0
    assert guest.user("mov eax, 5; mov ebx, 6; cpuid; mov ebx, 7; syscall") == GP
    assert (guest.q[v.RAX], guest.q[v.RBX]) == (5, 6)
    assert not wrmsr(guest, 0x140, 2)
    assert wrmsr(guest, 0x140, 0)
    assert guest.user("cpuid") is None


# -- instructions that look without privilege --------------------------------------------------------------


@pytest.mark.parametrize("user", [False, True])
def test_views_of_the_descriptor_tables(guest: Paused, user: bool) -> None:
    guest.allow_user_mode()

    def see(code: str) -> int:
        """RAX, or the CF of a table register's image, after the code."""
        assert (guest.user if user else guest.execute)(
            f"mov rbx, {guest.page(5)}; xor eax, eax; {code}"
        ) is None
        return guest.q[v.RAX]

    see("sgdt [rbx]")
    assert guest.get(10, 0x5000) == (0xEFFF).to_bytes(2, "little") + (0xFFFF820000000000).to_bytes(
        8, "little"
    )
    assert see("str eax") == 0xE040
    assert see("sldt eax") == 0
    assert see("smsw eax") & 0xFFFF == 0x33
    assert see("mov ecx, 0xe02b; lar eax, ecx") == 0x00C0F300 | 0x300
    assert see("mov ecx, 0xe033; lsl eax, ecx") == 0xFFFFFFFF
    for selector in (0xE008, 0xE010, 0xE040, 0xE050, 0xE060, 0xF000, 0x1234):
        assert see(f"mov ecx, {selector}; lar eax, ecx; setz al; movzx eax, al") == 0, hex(selector)
        assert see(f"mov ecx, {selector}; verr cx; setz al; movzx eax, al") == 0, hex(selector)
    assert see("mov ecx, 0xe02b; verw cx; setz al; movzx eax, al") == 1
    assert see("mov ecx, 0xe033; verw cx; setz al; movzx eax, al") == 0
