# SPDX-License-Identifier: GPL-2.0-only
"""Argument structures of the hypercalls, as the public headers (`xen.h`, `memory.h`, `event_channel.h`,
`grant_table.h`, `sched.h`, `vcpu.h`, `callback.h`, `version.h`, `nmi.h`, `sysctl.h`, `domctl.h`,
`platform.h`) lay them out; those of physdev_op are in `physdev.py`.

`shared_info` and `vcpu_guest_context` are large and touched field by field: their offsets are named
constants in `shared.py`.
"""

from pyhv.abi.layout import (
    AbiStruct,
    char32,
    char1024,
    control_union,
    evtchn_union,
    pointer,
    s16,
    s32,
    u8,
    u16,
    u16_after_struct,
    u32,
    u32_before_pointer,
    u64,
    u64_aligned,
    ulong,
)


class StartInfo(AbiStruct):
    """`start_info`, of an unprivileged domain: what a kernel finds when it begins.

    `shared_info` is a machine address; `pt_base`, `mfn_list` and (unless `flags` has SIF_MOD_START_PFN, 8)
    `mod_start` are virtual ones.
    """

    magic: char32
    nr_pages: ulong
    shared_info: ulong
    flags: u32
    store_mfn: ulong
    store_evtchn: u32
    console_mfn: ulong
    console_evtchn: u32
    pt_base: ulong
    nr_pt_frames: ulong
    mfn_list: ulong
    mod_start: ulong
    mod_len: ulong
    cmd_line: char1024
    first_p2m_pfn: ulong
    nr_p2m_frames: ulong


class MmuUpdate(AbiStruct):
    """`mmu_update`: machine address of an entry (command in bits 1..0) and its new value."""

    ptr: u64_aligned
    val: u64_aligned


class MmuextOp(AbiStruct):
    """`mmuext_op`: command, `arg1` (frame or linear address), `arg2` (count, frame or vcpumask)."""

    cmd: u32
    arg1: ulong
    arg2: ulong


class MulticallEntry(AbiStruct):
    """`multicall_entry`: hypercall number, result, six arguments."""

    op: ulong
    result: ulong
    arg0: ulong
    arg1: ulong
    arg2: ulong
    arg3: ulong
    arg4: ulong
    arg5: ulong


class MemoryReservation(AbiStruct):
    """`xen_memory_reservation`: a list of extents of 2**extent_order frames."""

    extent_start: pointer
    nr_extents: ulong
    extent_order: u32
    mem_flags: u32
    domid: u16


class MemoryExchange(AbiStruct):
    """`xen_memory_exchange`: two reservations (given, wanted) and the resume index."""

    in_extent_start: pointer
    in_nr_extents: ulong
    in_extent_order: u32
    in_mem_flags: u32
    in_domid: u16
    pad0: u16
    out_extent_start: pointer
    out_nr_extents: ulong
    out_extent_order: u32
    out_mem_flags: u32
    out_domid: u16
    pad2: u16
    nr_exchanged: ulong


class MachphysMapping(AbiStruct):
    """`xen_machphys_mapping`: where the M2P is and the highest frame that it describes."""

    v_start: ulong
    v_end: ulong
    max_mfn: ulong


class MachphysMfnList(AbiStruct):
    """`xen_machphys_mfn_list`: frames that back the M2P, in 2 MiB steps."""

    max_extents: u32
    extent_start: pointer
    nr_extents: u32


class MemoryMap(AbiStruct):
    """`xen_memory_map`: capacity / count of E820 entries and their buffer."""

    nr_entries: u32
    buffer: pointer


class ForeignMemoryMap(AbiStruct):
    """`xen_foreign_memory_map`: a domain, and a `MemoryMap` for it."""

    domid: u16
    nr_entries: u32_before_pointer
    buffer: pointer


class AddToPhysmap(AbiStruct):
    """`xen_add_to_physmap`; `pages` is its `size`."""

    domid: u16
    pages: u16
    space: u32
    idx: ulong
    gpfn: ulong


class AddToPhysmapBatch(AbiStruct):
    """`xen_add_to_physmap_batch`; `pages` is its `size`, `foreign_domid` is a union's only used member."""

    domid: u16
    space: u16
    pages: u16
    foreign_domid: u16
    idxs: pointer
    gpfns: pointer
    errs: pointer


class RemoveFromPhysmap(AbiStruct):
    """`xen_remove_from_physmap`."""

    domid: u16
    gpfn: ulong


class VnumaTopologyInfo(AbiStruct):
    """`xen_vnuma_topology_info`; each pointer is a union with a 64-bit word."""

    domid: u16
    pad: u16
    nr_vnodes: u32
    nr_vcpus: u32
    nr_vmemranges: u32
    vdistance: u64
    vcpu_to_vnode: u64
    vmemrange: u64


class AcquireResource(AbiStruct):
    """`xen_mem_acquire_resource`."""

    domid: u16
    type: u16
    id: u32
    nr_frames: u32
    pad: u32
    frame: u64
    frame_list: pointer


class GnttabSetupTable(AbiStruct):
    """`gnttab_setup_table`."""

    dom: u16
    nr_frames: u32
    status: s16
    frame_list: pointer


class GnttabMapGrantRef(AbiStruct):
    """`gnttab_map_grant_ref`."""

    host_addr: u64_aligned
    flags: u32
    ref: u32
    dom: u16
    status: s16
    handle: u32
    dev_bus_addr: u64_aligned


class GnttabUnmapGrantRef(AbiStruct):
    """`gnttab_unmap_grant_ref`."""

    host_addr: u64_aligned
    dev_bus_addr: u64_aligned
    handle: u32
    status: s16


class GnttabUnmapAndReplace(AbiStruct):
    """`gnttab_unmap_and_replace`: `new_addr` is where the entry comes from that takes the grant's place."""

    host_addr: u64_aligned
    new_addr: u64_aligned
    handle: u32
    status: s16


class GnttabTransfer(AbiStruct):
    """`gnttab_transfer`: the frame, and the receiver's entry."""

    mfn: ulong
    domid: u16
    ref: u32
    status: s16


class GnttabQuerySize(AbiStruct):
    """`gnttab_query_size`."""

    dom: u16
    nr_frames: u32
    max_nr_frames: u32
    status: s16


class GnttabSetVersion(AbiStruct):
    """`gnttab_set_version`."""

    version: u32


class GnttabGetVersion(AbiStruct):
    """`gnttab_get_version`."""

    dom: u16
    pad: u16
    version: u32


class GnttabGetStatusFrames(AbiStruct):
    """`gnttab_get_status_frames`."""

    nr_frames: u32
    dom: u16
    status: s16
    frame_list: pointer


class GnttabCopy(AbiStruct):
    """`gnttab_copy`: source and destination (grant reference or own frame), offset, length."""

    source: ulong
    source_domid: u16
    source_offset: u16
    dest: ulong
    dest_domid: u16
    dest_offset: u16
    length: u16_after_struct
    flags: u16
    status: s16


class GnttabSwapGrantRef(AbiStruct):
    """`gnttab_swap_grant_ref`."""

    ref_a: u32
    ref_b: u32
    status: s16


class GnttabCacheFlush(AbiStruct):
    """`gnttab_cache_flush`."""

    address: u64_aligned
    offset: u16
    length: u16
    op: u32


class EvtchnAllocUnbound(AbiStruct):
    """`evtchn_alloc_unbound`."""

    dom: u16
    remote_dom: u16
    port: u32


class EvtchnBindInterdomain(AbiStruct):
    """`evtchn_bind_interdomain`."""

    remote_dom: u16
    remote_port: u32
    local_port: u32


class EvtchnBindVirq(AbiStruct):
    """`evtchn_bind_virq`."""

    virq: u32
    vcpu: u32
    port: u32


class EvtchnBindIpi(AbiStruct):
    """`evtchn_bind_ipi`."""

    vcpu: u32
    port: u32


class EvtchnBindPirq(AbiStruct):
    """`evtchn_bind_pirq`."""

    pirq: u32
    flags: u32
    port: u32


class EvtchnClose(AbiStruct):
    """`evtchn_close`."""

    port: u32


class EvtchnSend(AbiStruct):
    """`evtchn_send`."""

    port: u32


class EvtchnUnmask(AbiStruct):
    """`evtchn_unmask`."""

    port: u32


class EvtchnStatus(AbiStruct):
    """`evtchn_status`; `u0` and `u1` are the union (domid and port, virq, pirq)."""

    dom: u16
    port: u32
    status: u32
    vcpu: u32
    u0: u32
    u1: u32


class EvtchnBindVcpu(AbiStruct):
    """`evtchn_bind_vcpu`."""

    port: u32
    vcpu: u32


class EvtchnReset(AbiStruct):
    """`evtchn_reset`."""

    dom: u16


class EvtchnInitControl(AbiStruct):
    """`evtchn_init_control`."""

    control_gfn: u64_aligned
    offset: u32
    vcpu: u32
    link_bits: u8


class EvtchnExpandArray(AbiStruct):
    """`evtchn_expand_array`."""

    array_gfn: u64_aligned


class EvtchnSetPriority(AbiStruct):
    """`evtchn_set_priority`."""

    port: u32
    priority: u32


class SchedShutdown(AbiStruct):
    """`sched_shutdown`: a SHUTDOWN reason."""

    reason: u32


class SchedPoll(AbiStruct):
    """`sched_poll`: ports, their count and an absolute timeout in ns (0: none)."""

    ports: pointer
    nr_ports: u32
    timeout: u64


class SchedWatchdog(AbiStruct):
    """`sched_watchdog`: timer id (0: new) and timeout in seconds (0: stop)."""

    id: u32
    timeout: u32


class VcpuSetPeriodicTimer(AbiStruct):
    """`vcpu_set_periodic_timer`: period in ns."""

    period_ns: u64


class VcpuSetSingleshotTimer(AbiStruct):
    """`vcpu_set_singleshot_timer`: absolute deadline in ns."""

    timeout_abs_ns: u64
    flags: u32


class VcpuRegisterVcpuInfo(AbiStruct):
    """`vcpu_register_vcpu_info`."""

    mfn: u64
    offset: u32
    rsvd: u32


class VcpuRunstateInfo(AbiStruct):
    """`vcpu_runstate_info`: state, when it was entered, ns spent in each of the four states."""

    state: s32
    state_entry_time: u64
    time0: u64
    time1: u64
    time2: u64
    time3: u64


class CallbackRegister(AbiStruct):
    """`callback_register` for 64-bit guests."""

    type: u16
    flags: u16
    address: ulong


class CallbackUnregister(AbiStruct):
    """`callback_unregister`."""

    type: u16
    unused: u16


class XennmiCallback(AbiStruct):
    """`xennmi_callback`."""

    handler_address: ulong
    pad: ulong


class EvtchnOp(AbiStruct):
    """`evtchn_op`: the old hypercall's form, a command and its structure."""

    cmd: u32
    u: evtchn_union


class Sysctl(AbiStruct):
    """`xen_sysctl`: a command, the version of the interface, and what the command says."""

    cmd: u32
    interface_version: u32
    u: control_union


class PlatformOp(AbiStruct):
    """`xen_platform_op`: a command, the version of the interface, and what the command says."""

    cmd: u32
    interface_version: u32
    u: control_union


class Domctl(AbiStruct):
    """`xen_domctl`: a command, the version of the interface, the domain, and what the command says."""

    cmd: u32
    interface_version: u32
    domain: u16
    u: control_union


class RemoteShutdown(AbiStruct):
    """`sched_remote_shutdown`: a domain and a SHUTDOWN reason."""

    domain_id: u16
    reason: u32


class VcpuRegisterArea(AbiStruct):
    """`vcpu_register_runstate_memory_area` and `vcpu_register_time_memory_area`: an address.

    It stands in a union with a 64-bit word, of which Xen reads no more than the caller's pointer.
    """

    address: pointer


class FeatureInfo(AbiStruct):
    """`xen_feature_info`."""

    submap_idx: u32
    submap: u32


class CallbackRegisterCompat(AbiStruct):
    """`callback_register` for 32-bit guests, whose callbacks have a code segment."""

    type: u16
    flags: u16
    cs: u32
    eip: u32


class TrapInfo(AbiStruct):
    """`trap_info`: a handler; bits 1..0 of `flags` are the DPL, bit 2 masks events on entry."""

    vector: u8
    flags: u8
    cs: u16
    address: ulong
