# SPDX-License-Identifier: GPL-2.0-only
"""The ABI as data, compared with the layouts that the public headers give (64-bit and 32-bit)."""

import struct

import pytest

from pyhv.abi import grants, numbers, physdev, shared, structs, x86, xs_wire
from pyhv.abi.errno import Errno
from pyhv.abi.hypercall_page import HYPERCALL_PAGE32, HYPERCALL_PAGE64, hypercall_page
from pyhv.abi.layout import AbiStruct
from pyhv.cpu.tsc import rate

# name: (size in 64-bit, size in 32-bit, "field offset" or "field offset64/offset32" ...)
PUBLISHED = {
    "StartInfo": (
        1168,
        1112,
        "magic 0 nr_pages 32 shared_info 40/36 flags 48/40 store_mfn 56/44 store_evtchn 64/48"
        " console_mfn 72/52 console_evtchn 80/56 pt_base 88/60 nr_pt_frames 96/64 mfn_list 104/68"
        " mod_start 112/72 mod_len 120/76"
        " cmd_line 128/80 first_p2m_pfn 1152/1104 nr_p2m_frames 1160/1108",
    ),
    "MmuUpdate": (16, 16, "ptr 0 val 8"),
    "MmuextOp": (24, 12, "cmd 0 arg1 8/4 arg2 16/8"),
    "MulticallEntry": (64, 32, "op 0 result 8/4 arg0 16/8 arg5 56/28"),
    "MemoryReservation": (
        32,
        20,
        "extent_start 0 nr_extents 8/4 extent_order 16/8 mem_flags 20/12 domid 24/16",
    ),
    "MemoryExchange": (
        72,
        44,
        "in_extent_start 0 in_nr_extents 8/4 in_extent_order 16/8 in_mem_flags 20/12 in_domid 24/16"
        " out_extent_start 32/20 out_nr_extents 40/24 out_extent_order 48/28 out_mem_flags 52/32"
        " out_domid 56/36 nr_exchanged 64/40",
    ),
    "MachphysMapping": (24, 12, "v_start 0 v_end 8/4 max_mfn 16/8"),
    "MachphysMfnList": (24, 12, "max_extents 0 extent_start 8/4 nr_extents 16/8"),
    "MemoryMap": (16, 8, "nr_entries 0 buffer 8/4"),
    "GnttabSetupTable": (24, 16, "dom 0 nr_frames 4 status 8 frame_list 16/12"),
    "GnttabMapGrantRef": (
        32,
        32,
        "host_addr 0 flags 8 ref 12 dom 16 status 18 handle 20 dev_bus_addr 24",
    ),
    "GnttabUnmapGrantRef": (24, 24, "host_addr 0 dev_bus_addr 8 handle 16 status 20"),
    "GnttabUnmapAndReplace": (24, 24, "host_addr 0 new_addr 8 handle 16 status 20"),
    "GnttabTransfer": (24, 16, "mfn 0 domid 8/4 ref 12/8 status 16/12"),
    "ForeignMemoryMap": (24, 12, "domid 0 nr_entries 8/4 buffer 16/8"),
    "AddToPhysmap": (24, 16, "domid 0 pages 2 space 4 idx 8 gpfn 16/12"),
    "AddToPhysmapBatch": (32, 20, "domid 0 space 2 pages 4 foreign_domid 6 idxs 8 gpfns 16/12 errs 24/16"),
    "RemoveFromPhysmap": (16, 8, "domid 0 gpfn 8/4"),
    "VnumaTopologyInfo": (
        40,
        40,
        "domid 0 pad 2 nr_vnodes 4 nr_vcpus 8 nr_vmemranges 12 vdistance 16 vcpu_to_vnode 24 vmemrange 32",
    ),
    "AcquireResource": (32, 28, "domid 0 type 2 id 4 nr_frames 8 pad 12 frame 16 frame_list 24"),
    "GnttabQuerySize": (16, 16, "dom 0 nr_frames 4 max_nr_frames 8 status 12"),
    "GnttabSetVersion": (4, 4, "version 0"),
    "GnttabGetVersion": (8, 8, "dom 0 version 4"),
    "GnttabGetStatusFrames": (16, 12, "nr_frames 0 dom 4 status 6 frame_list 8"),
    "GnttabCopy": (
        40,
        24,
        "source 0 source_domid 8/4 source_offset 10/6 dest 16/8 dest_domid 24/12 dest_offset 26/14"
        " length 32/16 flags 34/18 status 36/20",
    ),
    "GnttabSwapGrantRef": (12, 12, "ref_a 0 ref_b 4 status 8"),
    "GnttabCacheFlush": (16, 16, "address 0 offset 8 length 10 op 12"),
    "EvtchnAllocUnbound": (8, 8, "dom 0 remote_dom 2 port 4"),
    "EvtchnBindInterdomain": (12, 12, "remote_dom 0 remote_port 4 local_port 8"),
    "EvtchnBindVirq": (12, 12, "virq 0 vcpu 4 port 8"),
    "EvtchnBindIpi": (8, 8, "vcpu 0 port 4"),
    "EvtchnBindPirq": (12, 12, "pirq 0 flags 4 port 8"),
    "EvtchnClose": (4, 4, "port 0"),
    "EvtchnSend": (4, 4, "port 0"),
    "EvtchnUnmask": (4, 4, "port 0"),
    "EvtchnStatus": (24, 24, "dom 0 port 4 status 8 vcpu 12 u0 16 u1 20"),
    "EvtchnBindVcpu": (8, 8, "port 0 vcpu 4"),
    "EvtchnReset": (2, 2, "dom 0"),
    "EvtchnInitControl": (24, 24, "control_gfn 0 offset 8 vcpu 12 link_bits 16"),
    "EvtchnExpandArray": (8, 8, "array_gfn 0"),
    "EvtchnSetPriority": (8, 8, "port 0 priority 4"),
    "SchedShutdown": (4, 4, "reason 0"),
    "SchedPoll": (24, 16, "ports 0 nr_ports 8/4 timeout 16/8"),
    "SchedWatchdog": (8, 8, "id 0 timeout 4"),
    "VcpuSetPeriodicTimer": (8, 8, "period_ns 0"),
    "VcpuSetSingleshotTimer": (16, 12, "timeout_abs_ns 0 flags 8"),
    "VcpuRegisterVcpuInfo": (16, 16, "mfn 0 offset 8 rsvd 12"),
    "VcpuRunstateInfo": (48, 44, "state 0 state_entry_time 8/4 time0 16/12 time3 40/36"),
    "CallbackUnregister": (4, 4, "type 0 unused 2"),
    "CallbackRegisterCompat": (12, 12, "type 0 flags 2 cs 4 eip 8"),
    "TrapInfo": (16, 8, "vector 0 flags 1 cs 2 address 8/4"),
    "PhysdevSetIopl": (4, 4, "iopl 0"),
    "PhysdevSetIobitmap": (16, 8, "bitmap 0 nr_ports 8/4"),
    "PhysdevIrq": (8, 8, "irq 0 vector 4"),
    "PhysdevEoi": (4, 4, "irq 0"),
    "PhysdevApic": (16, 12, "apic_physbase 0 reg 8/4 value 12/8"),
    "PhysdevMapPirq": (40, 36, "domid 0 type 4 index 8 pirq 12 bus 16 devfn 20 entry_nr 24 table_base 32/28"),
    "PhysdevUnmapPirq": (8, 8, "domid 0 pirq 4"),
    "PhysdevSetupGsi": (8, 8, "gsi 0 triggering 4 polarity 5"),
    "PhysdevManagePci": (2, 2, "bus 0 devfn 1"),
    "PhysdevManagePciExt": (16, 16, "bus 0 devfn 1 is_extfn 4 is_virtfn 8 physfn_bus 12 physfn_devfn 13"),
    "PhysdevPciDeviceAdd": (12, 12, "seg 0 bus 2 devfn 3 flags 4 physfn_bus 8 physfn_devfn 9"),
    "PhysdevPciDevice": (4, 4, "seg 0 bus 2 devfn 3"),
    "XennmiCallback": (16, 8, "handler_address 0 pad 8/4"),
    "PhysdevOp": (24, 16, "cmd 0 u 8/4"),
    "EvtchnOp": (28, 28, "cmd 0 u 4"),
    "Sysctl": (136, 136, "cmd 0 interface_version 4 u 8"),
    "PlatformOp": (136, 136, "cmd 0 interface_version 4 u 8"),
    "Domctl": (144, 144, "cmd 0 interface_version 4 domain 8 u 16"),
    "RemoteShutdown": (8, 8, "domain_id 0 reason 4"),
    "VcpuRegisterArea": (8, 4, "address 0"),
    "FeatureInfo": (8, 8, "submap_idx 0 submap 4"),
}
ONLY_64_BIT = {"CallbackRegister": (16, "type 0 flags 2 address 8")}

CLASSES = {
    name: value
    for name, value in (vars(structs) | vars(physdev)).items()
    if isinstance(value, type) and issubclass(value, AbiStruct) and value is not AbiStruct
}


def offsets(text: str, width: int) -> dict[str, int]:
    words = text.split()
    found = {}
    for name, at in zip(words[::2], words[1::2], strict=True):
        wide, _, narrow = at.partition("/")
        found[name] = int(wide if width == 64 or not narrow else narrow)
    return found


@pytest.mark.promise("C-1")
def test_every_structure_is_compared() -> None:
    assert set(CLASSES) == set(PUBLISHED) | set(ONLY_64_BIT)


@pytest.mark.promise("C-1")
@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("width", [64, 32])
def test_layout(name: str, width: int) -> None:
    size64, size32, fields = PUBLISHED[name]
    layout = CLASSES[name].layout(width)
    assert layout.size == (size64 if width == 64 else size32)
    expected = offsets(fields, width)
    assert {field: layout.offsets[field] for field in expected} == expected


@pytest.mark.promise("C-1")
@pytest.mark.parametrize("name", sorted(ONLY_64_BIT))
def test_layout_of_64_bit_guests(name: str) -> None:
    size, fields = ONLY_64_BIT[name]
    layout = CLASSES[name].layout(64)
    assert layout.size == size
    assert offsets(fields, 64).items() <= layout.offsets.items()


def test_pack_and_unpack_are_inverse_and_padding_is_zero() -> None:
    request = structs.GnttabMapGrantRef(host_addr=1 << 63, flags=2, ref=7, dom=3, status=-3, handle=9)
    raw = request.pack()
    assert raw[18:20] == b"\xfd\xff"
    again = structs.GnttabMapGrantRef.unpack(raw)
    assert vars(again) == vars(request)
    dirty = structs.MmuextOp.unpack(b"\xff" * 24)
    assert dirty.pack()[4:8] == bytes(4)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="no field sizes"):
        structs.MemoryMap(sizes=1)


# -- offsets of the large structures -----------------------------------------------------------------------

SHARED = {
    "SI_VCPU_INFO": 0, "VCPU_INFO_SIZE": 64, "SI_EVTCHN_PENDING": 2048, "MAX_LEGACY_VCPUS": 32,
    "CONSOLE_CONNECTION": 3088,
    "VI_UPCALL_PENDING": 0, "VI_UPCALL_MASK": 1, "VI_TIME": 32, "TI_SIZE": 32,
    "FIFO_CONTROL_BLOCK_SIZE": 72, "FIFO_READY": 0, "FIFO_HEAD": 8, "FIFO_WORDS_PER_PAGE": 1024,
    "FIFO_PENDING": 1 << 31, "FIFO_MASKED": 1 << 30, "FIFO_LINKED": 1 << 29, "FIFO_BUSY": 1 << 28,
    "FIFO_LINK_BITS": 17, "FIFO_PORTS": 131072, "FIFO_QUEUES": 16,
    "GC_SIZE": 5168, "GC_FPU": 0, "GC_FLAGS": 512, "GC_USER_REGS": 520, "GC_TRAP_CTXT": 720,
    "GC_LDT_BASE": 4816, "GC_LDT_ENTS": 4824, "GC_GDT_FRAMES": 4832, "GC_GDT_ENTS": 4960,
    "GC_KERNEL_SS": 4968, "GC_KERNEL_SP": 4976, "GC_CTRLREG": 4984, "GC_DEBUGREG": 5048,
    "GC_EVENT_CALLBACK": 5112, "GC_FAILSAFE_CALLBACK": 5120, "GC_SYSCALL_CALLBACK": 5128,
    "GC_VM_ASSIST": 5136, "GC_FS_BASE": 5144, "GC_GS_BASE_KERNEL": 5152, "GC_GS_BASE_USER": 5160,
    "VGCF_I387_VALID": 1, "VGCF_IN_KERNEL": 4, "VGCF_FAILSAFE_DISABLES_EVENTS": 8,
    "VGCF_SYSCALL_DISABLES_EVENTS": 16, "VGCF_ONLINE": 32, "VGCF_IN_SYSCALL": 0x100,
}  # fmt: skip


@pytest.mark.promise("C-1")
def test_offsets_of_shared_pages() -> None:
    names = {name: value for name, value in vars(shared).items() if isinstance(value, int)}
    assert names == SHARED


@pytest.mark.promise("C-1")
def test_offsets_that_depend_on_the_width() -> None:
    names = ["width", "evtchn_mask", "wc_version", "wc_sec", "wc_nsec", "wc_sec_hi", "max_pfn", "nmi_reason"]
    names += ["pending_sel", "cr2"]
    for width, expected in (
        (64, [64, 2560, 3072, 3076, 3080, 3084, 3088, 3104, 8, 16]),
        (32, [32, 2176, 2304, 2308, 2312, 2340, 2316, 2324, 4, 8]),
    ):
        layout = shared.SHARED_LAYOUT[width]
        assert {name: getattr(layout, name) for name in names} == dict(zip(names, expected, strict=True))
        assert layout.evtchn_mask == shared.SI_EVTCHN_PENDING + width * width // 8


def test_offsets_of_a_context_follow_from_its_layout() -> None:
    """Every field lies where the fields before it end, at its own alignment."""
    for width, registers in ((64, 200), (32, 68)):
        layout = shared.CONTEXT_LAYOUT[width]
        word, wide = width // 8, width == 64
        fields: list[tuple[int | None, int]] = [
            (0, 512), (layout.flags, word), (layout.user_regs, registers),
            (layout.trap_ctxt, 256 * layout.trap_size), (layout.ldt_base, word), (layout.ldt_ents, word),
            (layout.gdt_frames, 16 * word), (layout.gdt_ents, word), (layout.kernel_ss, word),
            (layout.kernel_sp, word), (layout.ctrlreg, 8 * word), (layout.debugreg, 8 * word),
            (layout.event_callback_cs, word), (layout.event_callback, word),
            (layout.failsafe_callback_cs, word), (layout.failsafe_callback, word),
            (layout.syscall_callback, word), (layout.vm_assist, word), (layout.fs_base, word),
            (layout.gs_base_kernel, word), (layout.gs_base_user, word),
        ]  # fmt: skip
        end = 0
        for at, size in fields:
            if at is not None:
                assert at == end
                end = at + size
        assert layout.size == end
        assert layout.word == word
        assert (layout.fs_base is not None) is wide
        assert layout.trap_size == (16 if wide else 8)


def test_offsets_of_32_bit_user_registers() -> None:
    names = "ebx ecx edx esi edi ebp eax"
    assert [shared.USER_REGS_32[name] for name in names.split()] == list(range(0, 28, 4))
    tail = dict(list(shared.USER_REGS_32.items())[7:])
    assert tail == {
        "error_code": 28, "entry_vector": 30, "eip": 32, "cs": 36, "saved_upcall_mask": 38, "eflags": 40,
        "esp": 44, "ss": 48, "es": 52, "ds": 56, "fs": 60, "gs": 64,
    }  # fmt: skip


def test_offsets_of_user_registers() -> None:
    expected = offsets(
        "r15 0 r14 8 r13 16 r12 24 rbp 32 rbx 40 r11 48 r10 56 r9 64 r8 72 rax 80 rcx 88"
        " rdx 96 rsi 104 rdi 112",
        64,
    )
    expected |= {"error_code": 120, "entry_vector": 124, "rip": 128, "cs": 136, "saved_upcall_mask": 140}
    expected |= {"rflags": 144, "rsp": 152, "ss": 160, "es": 168, "ds": 176, "fs": 184, "gs": 192}
    assert expected == shared.USER_REGS


# -- numbers -----------------------------------------------------------------------------------------------

ERRNO = (
    "EPERM 1 ENOENT 2 ESRCH 3 EINTR 4 EIO 5 ENXIO 6 E2BIG 7 ENOEXEC 8 EBADF 9 EAGAIN 11 ENOMEM 12 EACCES 13"
    " EFAULT 14 EBUSY 16 EEXIST 17 EXDEV 18 ENODEV 19 ENOTDIR 20 EISDIR 21 EINVAL 22 ENOSPC 28 EROFS 30"
    " EMLINK 31 EDOM 33 ERANGE 34 ENOSYS 38 ENODATA 61 ETIME 62 EBADMSG 74 EOVERFLOW 75 EILSEQ 84"
    " ERESTART 85 EMSGSIZE 90 EOPNOTSUPP 95 EADDRINUSE 98 ENOBUFS 105 ETIMEDOUT 110"
)


@pytest.mark.promise("C-2")
def test_errno() -> None:
    assert {error.name: error.value for error in Errno} == offsets(ERRNO, 64)


@pytest.mark.promise("C-2")
@pytest.mark.parametrize(
    ("enumeration", "published"),
    [
        (
            numbers.Hypercall,
            "SET_TRAP_TABLE 0 MMU_UPDATE 1 SET_GDT 2 STACK_SWITCH 3 SET_CALLBACKS 4 FPU_TASKSWITCH 5"
            " SCHED_OP_COMPAT 6 PLATFORM_OP 7 SET_DEBUGREG 8 GET_DEBUGREG 9 UPDATE_DESCRIPTOR 10"
            " MEMORY_OP 12 MULTICALL 13 UPDATE_VA_MAPPING 14 SET_TIMER_OP 15 EVENT_CHANNEL_OP_COMPAT 16"
            " XEN_VERSION 17 CONSOLE_IO 18 PHYSDEV_OP_COMPAT 19 GRANT_TABLE_OP 20 VM_ASSIST 21"
            " UPDATE_VA_MAPPING_OTHERDOMAIN 22 IRET 23 VCPU_OP 24 SET_SEGMENT_BASE 25 MMUEXT_OP 26 XSM_OP 27"
            " NMI_OP 28 SCHED_OP 29 CALLBACK_OP 30 XENOPROF_OP 31 EVENT_CHANNEL_OP 32 PHYSDEV_OP 33"
            " HVM_OP 34 SYSCTL 35 DOMCTL 36 KEXEC_OP 37 TMEM_OP 38 ARGO_OP 39 XENPMU_OP 40 DM_OP 41"
            " HYPFS_OP 42 MCA 48",
        ),
        (numbers.CallbackOp, "REGISTER 0 UNREGISTER 1"),
        (numbers.NmiOp, "REGISTER_CALLBACK 0 UNREGISTER_CALLBACK 1"),
        (numbers.SegmentBase, "FS 0 GS_USER 1 GS_KERNEL 2 GS_USER_SEL 3"),
        (numbers.ConsoleIo, "WRITE 0 READ 1"),
        (numbers.AssistCommand, "ENABLE 0 DISABLE 1"),
        (numbers.VcpuState, "RUNNING 0 RUNNABLE 1 BLOCKED 2 OFFLINE 3"),
        (numbers.PortState, "FREE 0 UNBOUND 1 INTERDOMAIN 2 PIRQ 3 VIRQ 4 IPI 5"),
        (
            grants.GrantStatus,
            "OKAY 0 GENERAL_ERROR -1 BAD_DOMAIN -2 BAD_GNTREF -3 BAD_HANDLE -4 BAD_VIRT_ADDR -5"
            " BAD_DEV_ADDR -6 NO_DEVICE_SPACE -7 PERMISSION_DENIED -8 BAD_PAGE -9 BAD_COPY_ARG -10"
            " ADDRESS_TOO_BIG -11 EAGAIN -12 NO_SPACE -13",
        ),
        (grants.MapFlag, "DEVICE 1 HOST 2 READONLY 4 APPLICATION 8 CONTAINS_PTE 16"),
        (grants.CopyFlag, "SOURCE_GREF 1 DEST_GREF 2"),
        (
            xs_wire.Message,
            "CONTROL 0 DIRECTORY 1 READ 2 GET_PERMS 3 WATCH 4 UNWATCH 5 TRANSACTION_START 6"
            " TRANSACTION_END 7 INTRODUCE 8 RELEASE 9 GET_DOMAIN_PATH 10 WRITE 11 MKDIR 12 RM 13"
            " SET_PERMS 14 WATCH_EVENT 15 ERROR 16 IS_DOMAIN_INTRODUCED 17 RESUME 18 SET_TARGET 19"
            " RESET_WATCHES 21 DIRECTORY_PART 22 GET_FEATURE 23 SET_FEATURE 24 GET_QUOTA 25 SET_QUOTA 26",
        ),
        (
            numbers.Sched,
            "YIELD 0 BLOCK 1 SHUTDOWN 2 POLL 3 REMOTE_SHUTDOWN 4 SHUTDOWN_CODE 5 WATCHDOG 6 PIN_OVERRIDE 7",
        ),
        (numbers.Shutdown, "POWEROFF 0 REBOOT 1 SUSPEND 2 CRASH 3 WATCHDOG 4 SOFT_RESET 5"),
        (numbers.Callback, "EVENT 0 FAILSAFE 1 SYSCALL 2 NMI 4 SYSENTER 5 SYSCALL32 7"),
        (
            numbers.Mmu,
            "NORMAL_PT_UPDATE 0 MACHPHYS_UPDATE 1 PT_UPDATE_PRESERVE_AD 2 PT_UPDATE_NO_TRANSLATE 3",
        ),
        (
            numbers.Mmuext,
            "PIN_L1_TABLE 0 PIN_L2_TABLE 1 PIN_L3_TABLE 2 PIN_L4_TABLE 3 UNPIN_TABLE 4 NEW_BASEPTR 5"
            " TLB_FLUSH_LOCAL 6 INVLPG_LOCAL 7 TLB_FLUSH_MULTI 8 INVLPG_MULTI 9 TLB_FLUSH_ALL 10"
            " INVLPG_ALL 11"
            " FLUSH_CACHE 12 SET_LDT 13 NEW_USER_BASEPTR 15 CLEAR_PAGE 16 COPY_PAGE 17 FLUSH_CACHE_GLOBAL 18"
            " MARK_SUPER 19 UNMARK_SUPER 20",
        ),
        (
            numbers.VcpuOp,
            "INITIALISE 0 UP 1 DOWN 2 IS_UP 3 GET_RUNSTATE_INFO 4 REGISTER_RUNSTATE_MEMORY_AREA 5"
            " SET_PERIODIC_TIMER 6 STOP_PERIODIC_TIMER 7 SET_SINGLESHOT_TIMER 8 STOP_SINGLESHOT_TIMER 9"
            " REGISTER_VCPU_INFO 10 SEND_NMI 11 GET_PHYSID 12 REGISTER_VCPU_TIME_MEMORY_AREA 13",
        ),
        (
            numbers.Evtchn,
            "BIND_INTERDOMAIN 0 BIND_VIRQ 1 BIND_PIRQ 2 CLOSE 3 SEND 4 STATUS 5 ALLOC_UNBOUND 6 BIND_IPI 7"
            " BIND_VCPU 8 UNMASK 9 RESET 10 INIT_CONTROL 11 EXPAND_ARRAY 12 SET_PRIORITY 13 RESET_CONT 14",
        ),
        (
            numbers.Gnttab,
            "MAP_GRANT_REF 0 UNMAP_GRANT_REF 1 SETUP_TABLE 2 DUMP_TABLE 3 TRANSFER 4 COPY 5 QUERY_SIZE 6"
            " UNMAP_AND_REPLACE 7 SET_VERSION 8 GET_STATUS_FRAMES 9 GET_VERSION 10 SWAP_GRANT_REF 11"
            " CACHE_FLUSH 12",
        ),
        (
            numbers.Virq,
            "TIMER 0 DEBUG 1 CONSOLE 2 DOM_EXC 3 TBUF 4 DEBUGGER 6 XENOPROF 7 CON_RING 8 PCPU_STATE 9"
            " MEM_EVENT 10 ARGO 11 ENOMEM 12 XENPMU 13",
        ),
        (
            numbers.Assist,
            "FOUR_GB_SEGMENTS 0 FOUR_GB_SEGMENTS_NOTIFY 1 WRITABLE_PAGETABLES 2 PAE_EXTENDED_CR3 3"
            " ARCHITECTURAL_IOPL 4 RUNSTATE_UPDATE_FLAG 5 M2P_STRICT 32",
        ),
    ],
)  # fmt: skip
def test_numbers(enumeration: type[numbers.Sched], published: str) -> None:
    assert {member.name: member.value for member in enumeration} == offsets(published, 64)


def test_descriptors_of_xen() -> None:
    published = {
        0xE008: 0x00AF9B000000FFFF, 0xE010: 0x00CF93000000FFFF, 0xE020: 0x00CFFB000000FFFF,
        0xE028: 0x00CFF3000000FFFF, 0xE030: 0x00AFFB000000FFFF, 0xE060: 0x0000910000000000,
    }  # fmt: skip
    assert published == x86.RESERVED_DESCRIPTORS
    assert (x86.FLAT_RING3_CS32, x86.FLAT_RING3_DS, x86.FLAT_RING3_CS64) == (0xE023, 0xE02B, 0xE033)


def test_error_codes_are_pushed_for_these_vectors() -> None:
    assert frozenset({8, 10, 11, 12, 13, 14, 17, 21}) == x86.ERROR_CODE_VECTORS


def test_hypercall_page() -> None:
    assert len(HYPERCALL_PAGE64) == 4096
    for number in (0, 12, 42, 127):
        stub = HYPERCALL_PAGE64[32 * number : 32 * number + 14]
        code = b"\x51\x41\x53\xb8" + struct.pack("<I", number) + b"\x0f\x05\x41\x5b\x59\xc3"
        assert stub == code
    assert HYPERCALL_PAGE64[23 * 32 : 23 * 32 + 11] == b"\x51\x41\x53\x50\xb8\x17\x00\x00\x00\x0f\x05"
    assert hypercall_page(64) is HYPERCALL_PAGE64


def test_hypercall_page_of_32_bit_guests() -> None:
    page = hypercall_page(32)
    assert page is HYPERCALL_PAGE32
    assert len(page) == 4096
    for number in (0, 12, 42, 127):
        stub = b"\xb8" + struct.pack("<I", number) + b"\xcd\x82\xc3"
        assert page[32 * number : 32 * number + 32] == stub.ljust(32, b"\xcc")
    assert page[23 * 32 : 24 * 32] == b"\x50\xb8\x17\x00\x00\x00\xcd\x82".ljust(32, b"\xcc")


@pytest.mark.promise("T-11")
@pytest.mark.parametrize(
    ("hz", "shift", "mul"),
    [(1_000_000_000, 1, 0x8000_0000), (2_700_000_000, -1, 3181457256), (10**8, 4, 2684354560)],
)
def test_tsc_frequency_is_expressed_by_multiplier_and_shift(hz: int, shift: int, mul: int) -> None:
    """The published rule: shift the frequency into (1e9, 2e9], then mul = 1e9 << 32 / frequency."""
    found = rate(hz)
    assert (found.shift, found.mul) == (shift, mul)
    ticks = hz  # one second
    shifted = ticks << shift if shift >= 0 else ticks >> -shift
    assert abs((shifted * found.mul >> 32) - 10**9) <= 1
