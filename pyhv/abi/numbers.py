# SPDX-License-Identifier: GPL-2.0-only
"""Commands, sub-operations and reasons of the hypercalls (public headers), as enumerations."""

import enum
from typing import Final


class Hypercall(enum.IntEnum):
    """Numbers of the hypercalls (`__HYPERVISOR_*` in `xen.h`)."""

    SET_TRAP_TABLE = 0
    MMU_UPDATE = 1
    SET_GDT = 2
    STACK_SWITCH = 3
    SET_CALLBACKS = 4
    FPU_TASKSWITCH = 5
    SCHED_OP_COMPAT = 6
    PLATFORM_OP = 7
    SET_DEBUGREG = 8
    GET_DEBUGREG = 9
    UPDATE_DESCRIPTOR = 10
    MEMORY_OP = 12
    MULTICALL = 13
    UPDATE_VA_MAPPING = 14
    SET_TIMER_OP = 15
    EVENT_CHANNEL_OP_COMPAT = 16
    XEN_VERSION = 17
    CONSOLE_IO = 18
    PHYSDEV_OP_COMPAT = 19
    GRANT_TABLE_OP = 20
    VM_ASSIST = 21
    UPDATE_VA_MAPPING_OTHERDOMAIN = 22
    IRET = 23
    VCPU_OP = 24
    SET_SEGMENT_BASE = 25
    MMUEXT_OP = 26
    XSM_OP = 27
    NMI_OP = 28
    SCHED_OP = 29
    CALLBACK_OP = 30
    XENOPROF_OP = 31
    EVENT_CHANNEL_OP = 32
    PHYSDEV_OP = 33
    HVM_OP = 34
    SYSCTL = 35
    DOMCTL = 36
    KEXEC_OP = 37
    TMEM_OP = 38
    ARGO_OP = 39
    XENPMU_OP = 40
    DM_OP = 41
    HYPFS_OP = 42
    MCA = 48


class Mmu(enum.IntEnum):
    """Command in the low bits of `mmu_update.ptr`."""

    NORMAL_PT_UPDATE = 0
    MACHPHYS_UPDATE = 1
    PT_UPDATE_PRESERVE_AD = 2
    PT_UPDATE_NO_TRANSLATE = 3


class Mmuext(enum.IntEnum):
    """`mmuext_op` commands."""

    PIN_L1_TABLE = 0
    PIN_L2_TABLE = 1
    PIN_L3_TABLE = 2
    PIN_L4_TABLE = 3
    UNPIN_TABLE = 4
    NEW_BASEPTR = 5
    TLB_FLUSH_LOCAL = 6
    INVLPG_LOCAL = 7
    TLB_FLUSH_MULTI = 8
    INVLPG_MULTI = 9
    TLB_FLUSH_ALL = 10
    INVLPG_ALL = 11
    FLUSH_CACHE = 12
    SET_LDT = 13
    NEW_USER_BASEPTR = 15
    CLEAR_PAGE = 16
    COPY_PAGE = 17
    FLUSH_CACHE_GLOBAL = 18
    MARK_SUPER = 19
    UNMARK_SUPER = 20


class MemoryOp(enum.IntEnum):
    """`memory_op` commands."""

    INCREASE_RESERVATION = 0
    DECREASE_RESERVATION = 1
    MAXIMUM_RAM_PAGE = 2
    CURRENT_RESERVATION = 3
    MAXIMUM_RESERVATION = 4
    MACHPHYS_MFN_LIST = 5
    POPULATE_PHYSMAP = 6
    ADD_TO_PHYSMAP = 7
    MEMORY_MAP = 9
    MACHINE_MEMORY_MAP = 10
    EXCHANGE = 11
    MACHPHYS_MAPPING = 12
    SET_MEMORY_MAP = 13
    MAXIMUM_GPFN = 14
    REMOVE_FROM_PHYSMAP = 15
    SET_POD_TARGET = 16
    GET_POD_TARGET = 17
    GET_SHARING_FREED_PAGES = 18
    GET_SHARING_SHARED_PAGES = 19
    ADD_TO_PHYSMAP_BATCH = 23
    CLAIM_PAGES = 24
    MACHPHYS_COMPAT_MFN_LIST = 25
    GET_VNUMAINFO = 26
    RESERVED_DEVICE_MEMORY_MAP = 27
    ACQUIRE_RESOURCE = 28


class Sched(enum.IntEnum):
    """`sched_op` commands."""

    YIELD = 0
    BLOCK = 1
    SHUTDOWN = 2
    POLL = 3
    REMOTE_SHUTDOWN = 4
    SHUTDOWN_CODE = 5
    WATCHDOG = 6
    PIN_OVERRIDE = 7


class Shutdown(enum.IntEnum):
    """Why a domain stopped."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


class VcpuOp(enum.IntEnum):
    """`vcpu_op` commands."""

    INITIALISE = 0
    UP = 1
    DOWN = 2
    IS_UP = 3
    GET_RUNSTATE_INFO = 4
    REGISTER_RUNSTATE_MEMORY_AREA = 5
    SET_PERIODIC_TIMER = 6
    STOP_PERIODIC_TIMER = 7
    SET_SINGLESHOT_TIMER = 8
    STOP_SINGLESHOT_TIMER = 9
    REGISTER_VCPU_INFO = 10
    SEND_NMI = 11
    GET_PHYSID = 12
    REGISTER_VCPU_TIME_MEMORY_AREA = 13


class VcpuState(enum.IntEnum):
    """What a vCPU does (RUNSTATE)."""

    RUNNING = 0
    RUNNABLE = 1
    BLOCKED = 2
    OFFLINE = 3


class Evtchn(enum.IntEnum):
    """`event_channel_op` commands."""

    BIND_INTERDOMAIN = 0
    BIND_VIRQ = 1
    BIND_PIRQ = 2
    CLOSE = 3
    SEND = 4
    STATUS = 5
    ALLOC_UNBOUND = 6
    BIND_IPI = 7
    BIND_VCPU = 8
    UNMASK = 9
    RESET = 10
    INIT_CONTROL = 11
    EXPAND_ARRAY = 12
    SET_PRIORITY = 13
    RESET_CONT = 14


class PortState(enum.IntEnum):
    """What a port is, as EVTCHNOP_status tells (EVTCHNSTAT)."""

    FREE = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    PIRQ = 3
    VIRQ = 4
    IPI = 5


class Virq(enum.IntEnum):
    """Virtual interrupts."""

    TIMER = 0
    DEBUG = 1
    CONSOLE = 2
    DOM_EXC = 3
    TBUF = 4
    DEBUGGER = 6
    XENOPROF = 7
    CON_RING = 8
    PCPU_STATE = 9
    MEM_EVENT = 10
    ARGO = 11
    ENOMEM = 12
    XENPMU = 13


class Gnttab(enum.IntEnum):
    """`grant_table_op` commands."""

    MAP_GRANT_REF = 0
    UNMAP_GRANT_REF = 1
    SETUP_TABLE = 2
    DUMP_TABLE = 3
    TRANSFER = 4
    COPY = 5
    QUERY_SIZE = 6
    UNMAP_AND_REPLACE = 7
    SET_VERSION = 8
    GET_STATUS_FRAMES = 9
    GET_VERSION = 10
    SWAP_GRANT_REF = 11
    CACHE_FLUSH = 12


class CallbackOp(enum.IntEnum):
    """`callback_op` commands."""

    REGISTER = 0
    UNREGISTER = 1


class NmiOp(enum.IntEnum):
    """`nmi_op` commands."""

    REGISTER_CALLBACK = 0
    UNREGISTER_CALLBACK = 1


class SegmentBase(enum.IntEnum):
    """What `set_segment_base` sets (SEGBASE)."""

    FS = 0
    GS_USER = 1
    GS_KERNEL = 2
    GS_USER_SEL = 3


class ConsoleIo(enum.IntEnum):
    """`console_io` commands."""

    WRITE = 0
    READ = 1


class Callback(enum.IntEnum):
    """Callback types of `callback_op`."""

    EVENT = 0
    FAILSAFE = 1
    SYSCALL = 2
    NMI = 4
    SYSENTER = 5
    SYSCALL32 = 7


class AssistCommand(enum.IntEnum):
    """`vm_assist` commands."""

    ENABLE = 0
    DISABLE = 1


class Assist(enum.IntEnum):
    """`vm_assist` types."""

    FOUR_GB_SEGMENTS = 0
    FOUR_GB_SEGMENTS_NOTIFY = 1
    WRITABLE_PAGETABLES = 2
    PAE_EXTENDED_CR3 = 3
    ARCHITECTURAL_IOPL = 4
    RUNSTATE_UPDATE_FLAG = 5
    M2P_STRICT = 32


class Xenver(enum.IntEnum):
    """`xen_version` commands."""

    VERSION = 0
    EXTRAVERSION = 1
    COMPILE_INFO = 2
    CAPABILITIES = 3
    CHANGESET = 4
    PLATFORM_PARAMETERS = 5
    GET_FEATURES = 6
    PAGESIZE = 7
    GUEST_HANDLE = 8
    COMMANDLINE = 9
    BUILD_ID = 10


class Physdev(enum.IntEnum):
    """`physdev_op` commands."""

    IRQ_UNMASK_NOTIFY = 4
    IRQ_STATUS_QUERY = 5
    SET_IOPL = 6
    SET_IOBITMAP = 7
    APIC_READ = 8
    APIC_WRITE = 9
    ALLOC_IRQ_VECTOR = 10
    EOI = 12
    MAP_PIRQ = 13
    UNMAP_PIRQ = 14
    MANAGE_PCI_ADD = 15
    MANAGE_PCI_REMOVE = 16
    RESTORE_MSI = 19
    MANAGE_PCI_ADD_EXT = 20
    SETUP_GSI = 21
    PCI_MMCFG_RESERVED = 24
    PCI_DEVICE_ADD = 25
    PCI_DEVICE_REMOVE = 26
    RESTORE_MSI_EXT = 27
    PREPARE_MSIX = 30
    RELEASE_MSIX = 31


class Feature(enum.IntEnum):
    """XENFEAT bits that a PV domU of pyhv sees."""

    MMU_PT_UPDATE_PRESERVE_AD = 5
    HIGHMEM_ASSIST = 6
    GNTTAB_MAP_AVAIL_BITS = 7
    MEMORY_OP_VNODE_SUPPORTED = 13
    DIRECT_MAPPED = 17


NR_HYPERCALLS: Final = 64
"""Numbers from here on are no hypercall's, and never will be."""
CALLBACKF_MASK_EVENTS: Final = 1
NR_VIRQS: Final = 24
UVMF_FLUSH_MASK: Final = 3
UVMF_TLB_FLUSH: Final = 1
UVMF_INVLPG: Final = 2
"""Low bits of `update_va_mapping`'s flags: none, whole TLB, one page."""
MEMOP_EXTENT_SHIFT: Final = 6
