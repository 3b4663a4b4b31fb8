# SPDX-License-Identifier: GPL-2.0-only
"""How an attacker asks for each hypercall: its structures in memory, its arguments in registers.

`REQUESTS` has a function for every number in pyhv's table, `(grammar) -> arguments`, which puts what the
arguments point to into the guest's argument pages. What the input spoils afterwards - wild pointers, counts,
commands - `hypercalls.py` decides.
"""

import struct
from collections.abc import Callable

from fuzz.grammar import Grammar
from fuzz.world import FLAT_RING1_CS, FLAT_RING1_DS
from pyhv.abi import physdev, shared, structs
from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import Callback, Evtchn, Gnttab, Hypercall, MemoryOp, Mmuext, Sched, VcpuOp
from pyhv.address import MASK32

Arguments = tuple[int, ...]
_LISTS = 1024
"""Offset in the argument pages of lists that structures point to."""
_RESULT = 4096 + 2048


def pack(item: AbiStruct, width: int) -> bytes:
    """The structure's bytes, each number cut to its field."""
    layout = item.layout(width)
    fields = sorted(layout.offsets.items(), key=lambda pair: pair[1])
    ends = [at for _, at in fields[1:]] + [layout.size]
    raw = bytearray(layout.size)
    for (name, at), end in zip(fields, ends, strict=True):
        size = min(end - at, 8)
        raw[at : at + size] = (getattr(item, name) & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(raw)


def _store(g: Grammar, *items: AbiStruct) -> int:
    width = g.guest.width
    return g.guest.put(b"".join(pack(item, width) for item in items))


def _words(g: Grammar, values: list[int]) -> int:
    code = "Q" if g.guest.width == 64 else "I"
    mask = (1 << g.guest.width) - 1
    return g.guest.put(struct.pack(f"<{len(values)}{code}", *(v & mask for v in values)), _LISTS)


def _several(g: Grammar) -> int:
    return g.source.pick((1, 1, 1, 2, 3, 5))


def _done(g: Grammar) -> int:
    how = g.source.u8()
    return 0 if how < 128 else g.guest.arguments + _RESULT if how < 240 else g.va()


def _foreign(g: Grammar) -> int:
    how = g.source.u8()
    return DOMID_SELF if how < 224 else g.domid() | (g.domid() + 1 << 16 if how & 1 else 0)


# -- page tables -------------------------------------------------------------------------------------------


def mmu_update(g: Grammar) -> Arguments:
    """Entries of tables by machine address, the M2P."""
    updates = []
    for _ in range(_several(g)):
        command = g.source.pick((0, 0, 0, 2, 3, 1, 4, 7))
        pointer = g.frame() << 12 | g.slot() << 3 | command
        updates.append(structs.MmuUpdate(ptr=pointer & (1 << 64) - 1, val=g.entry()))
    return _store(g, *updates), len(updates), _done(g), _foreign(g)


def mmuext_op(g: Grammar) -> Arguments:
    """Pins, base pointers, flushes, LDT, page operations."""
    operations = []
    for _ in range(_several(g)):
        command = g.source.u8() % 22
        first, second = g.frame(), g.frame()
        if command == Mmuext.SET_LDT:
            first, second = g.va() & ~0xFFF, g.source.pick((0, 1, 512, 513, 1024, 8192, 8193))
        elif command in (Mmuext.INVLPG_LOCAL, Mmuext.INVLPG_MULTI, Mmuext.INVLPG_ALL):
            first, second = g.va(), g.va()
        elif command == Mmuext.TLB_FLUSH_MULTI:
            second = g.va()
        operations.append(structs.MmuextOp(cmd=command, arg1=first, arg2=second))
    return _store(g, *operations), len(operations), _done(g), _foreign(g)


def update_va_mapping(g: Grammar) -> Arguments:
    """A leaf by virtual address."""
    return g.va(), g.leaf(), g.source.pick((0, 2, 1, 3, 4, 6)) | (g.va() & ~7 if g.source.chance(24) else 0)


def update_va_mapping_otherdomain(g: Grammar) -> Arguments:
    """The same for another domain."""
    return (*update_va_mapping(g), g.domid())


# -- descriptors, traps, segments --------------------------------------------------------------------------


def set_trap_table(g: Grammar) -> Arguments:
    """Handlers; a list without end now and then."""
    entries = b"".join(
        struct.pack("<BBHIQ", g.source.u8(), g.source.u8() & 7, g.selector(), 0, g.va())
        for _ in range(_several(g))
    )
    return (g.guest.put(entries + bytes(0 if g.source.chance(16) else 16)),)


def set_gdt(g: Grammar) -> Arguments:
    """Descriptor frames."""
    count = g.source.pick((1, 1, 2, 14, 0))
    listed = _words(g, [g.frame() for _ in range(count)])
    return listed, g.source.pick((512 * count, 512 * count, 1, 7168, 7169))


def update_descriptor(g: Grammar) -> Arguments:
    """One descriptor."""
    return g.frame() << 12 | g.slot() << 3, g.descriptor()


def iret(g: Grammar) -> Arguments:
    """A frame that leads back to the kernel or to user mode, or nowhere."""
    guest, how = g.guest, g.source.u8()
    wide = guest.width == 64
    kernel, user = (0xE030, 0xE033) if wide else (FLAT_RING1_CS, 0xE01B + 0x10)
    if not guest.vcpu.paging.user_l4 and how >= 136 and wide:
        user = kernel
    cs = kernel if how < 128 else user if how < 224 else g.selector()
    ss = (0xE02B if wide else FLAT_RING1_DS) if how < 224 else g.selector()
    rip = guest.code + 64 if how < 240 else g.va()
    flags = 0x202 if how < 200 else g.source.number(4)
    if wide:
        frame = struct.pack("<9Q", 0, 0, 0, 0x100 if how & 1 else 0, rip, cs, flags, guest.stack, ss)
    else:
        frame = struct.pack("<6I", 0, rip & MASK32, cs, flags, guest.stack, ss)
    guest.poke(guest.stack, frame)
    return ()


def callback_op(g: Grammar) -> Arguments:
    """Register and unregister."""
    kind = g.source.pick([*Callback, 3, 99])
    request = structs.CallbackRegister(type=kind, flags=g.source.below(4), address=g.va())
    return g.source.pick((0, 0, 0, 1, 2)), _store(g, request)


def nmi_op(g: Grammar) -> Arguments:
    """The NMI callback."""
    return g.source.below(3), g.guest.put(struct.pack("<Q", g.va()))


def plain(*kinds: Callable[[Grammar], int]) -> Callable[[Grammar], Arguments]:
    """A hypercall whose arguments are all in registers."""
    return lambda g: tuple(kind(g) for kind in kinds)


# -- memory and grants -------------------------------------------------------------------------------------


def memory_op(g: Grammar) -> Arguments:
    """Reservations, exchanges, questions."""
    command = g.source.pick((0, 1, 1, 6, 6, 11, 11, 2, 3, 4, 5, 7, 9, 10, 12, 13, 14, 15, 23, 28, 63))
    order = g.source.pick((0, 0, 0, 0, 1, 2, 9, 10, 20, 21, 64, MASK32))
    extents = g.source.pick((1, 1, 2, 3, 8, 0)) if not g.source.chance(16) else g.count()
    frames = [g.play_frame() if g.source.chance(200) else g.frame() for _ in range(min(extents, 8))]
    given = _words(g, frames) if not g.source.chance(12) else g.va()
    domid = DOMID_SELF if not g.source.chance(16) else g.domid()
    if command == MemoryOp.EXCHANGE:
        out = given if g.source.chance(64) else _words(g, frames) + 256
        out_order = order if not g.source.chance(64) else g.source.below(4)
        request: AbiStruct = structs.MemoryExchange(
            in_extent_start=given,
            in_nr_extents=extents,
            in_extent_order=order,
            in_domid=domid,
            out_extent_start=out,
            out_nr_extents=(extents << min(order, 64)) >> min(out_order, 64),
            out_extent_order=out_order,
            out_domid=domid,
            nr_exchanged=g.source.pick((0, 0, 0, 1, 5)),
        )
    elif command in (MemoryOp.MACHPHYS_MFN_LIST, MemoryOp.MEMORY_MAP):
        request = structs.MachphysMfnList(max_extents=extents & MASK32, extent_start=given)
    else:
        request = structs.MemoryReservation(
            extent_start=given,
            nr_extents=extents,
            extent_order=order,
            mem_flags=g.source.pick((0, 0, 0, 1 << 17, MASK32)),
            domid=domid,
        )
    start = g.source.pick((0, 0, 0, 0, 0, 1, 2, 1 << 57)) << 6
    return command | start, _store(g, request)


def grant_table_op(g: Grammar) -> Arguments:
    """Map, unmap, copy and the rest."""
    command = g.source.pick((0, 0, 0, 1, 1, 1, 5, 5, 2, 6, 8, 9, 10, 11, 12, 3, 4, 7, 13))
    items: list[AbiStruct] = [_grant_request(g, command) for _ in range(_several(g))]
    return command, _store(g, *items), len(items) if command in (0, 1, 5, 11, 12) else 1


def _grant_request(g: Grammar, command: int) -> AbiStruct:
    if command == Gnttab.MAP_GRANT_REF:
        how = g.source.u8()
        flags = (2, 2, 2, 6, 1, 3, 7, 18, 22, 10, 0, 2 | 7 << 16)[how % 12] if how < 240 else MASK32
        where = (g.frame() << 12 | g.slot() << 3) & (1 << 64) - 1 if flags & 16 else g.va()
        g.guest.windows = [*g.guest.windows[-7:], where]
        return structs.GnttabMapGrantRef(host_addr=where, flags=flags, ref=g.ref(), dom=g.domid())
    if command in (Gnttab.UNMAP_GRANT_REF, Gnttab.UNMAP_AND_REPLACE):
        mapping = dict(g.guest.domain.maptrack.all()).get(handle := g.handle())
        windows = g.guest.windows
        host = g.source.pick(windows) if windows and g.source.chance(200) else g.va()
        device = (mapping.frame << 12 if mapping is not None else 0) if g.source.chance(128) else 0
        return structs.GnttabUnmapGrantRef(
            host_addr=0 if g.source.chance(24) else host,
            dev_bus_addr=device,
            handle=handle,
        )
    if command == Gnttab.COPY:
        flags = g.source.below(4)
        return structs.GnttabCopy(
            source=g.ref() if flags & 1 else g.frame(),
            source_domid=g.domid() if flags & 1 else DOMID_SELF,
            source_offset=g.source.pick((0, 0, 8, 4095, 4096, 65535)),
            dest=g.ref() if flags & 2 else g.frame(),
            dest_domid=g.domid() if flags & 2 else DOMID_SELF,
            dest_offset=g.source.pick((0, 0, 8, 4095, 4096, 65535)),
            length=g.source.pick((4096, 8, 1, 0, 4097, 65535)),
            flags=flags,
        )
    if command == Gnttab.SWAP_GRANT_REF:
        return structs.GnttabSwapGrantRef(ref_a=g.ref(), ref_b=g.ref())
    if command == Gnttab.CACHE_FLUSH:
        return structs.GnttabCacheFlush(
            address=g.frame() << 12 & (1 << 64) - 1,
            offset=g.source.number(2),
            length=g.source.number(2),
            op=g.source.below(9),
        )
    if command == Gnttab.GET_STATUS_FRAMES:
        return structs.GnttabGetStatusFrames(
            nr_frames=g.count() & MASK32,
            dom=g.domid(),
            frame_list=g.guest.arguments + _LISTS,
        )
    if command in (Gnttab.SET_VERSION, Gnttab.GET_VERSION, Gnttab.QUERY_SIZE):
        return structs.GnttabSetVersion(version=g.source.pick((1, 2, 2, 0, DOMID_SELF, 3)))
    frames = g.source.pick((1, 2, 4, 0, 63, 64, 65, MASK32)) if g.source.chance(64) else 1
    return structs.GnttabSetupTable(
        dom=DOMID_SELF if not g.source.chance(32) else g.domid(),
        nr_frames=frames,
        frame_list=g.guest.arguments + _LISTS if not g.source.chance(16) else g.va(),
    )


# -- events, scheduling, vCPUs -----------------------------------------------------------------------------


def event_channel_op(g: Grammar) -> Arguments:
    """Bind, close, signal."""
    command = g.source.u8() % 15
    items: dict[int, Callable[[], AbiStruct]] = {
        Evtchn.ALLOC_UNBOUND: lambda: structs.EvtchnAllocUnbound(dom=DOMID_SELF, remote_dom=g.domid()),
        Evtchn.BIND_INTERDOMAIN: lambda: structs.EvtchnBindInterdomain(
            remote_dom=g.domid(), remote_port=g.port()
        ),
        Evtchn.BIND_VIRQ: lambda: structs.EvtchnBindVirq(virq=g.source.u8() % 28, vcpu=g.vcpu()),
        Evtchn.BIND_IPI: lambda: structs.EvtchnBindIpi(vcpu=g.vcpu()),
        Evtchn.BIND_PIRQ: lambda: structs.EvtchnBindPirq(pirq=g.source.u8()),
        Evtchn.STATUS: lambda: structs.EvtchnStatus(dom=g.domid(), port=g.port()),
        Evtchn.BIND_VCPU: lambda: structs.EvtchnBindVcpu(port=g.port(), vcpu=g.vcpu()),
        Evtchn.RESET: lambda: structs.EvtchnReset(dom=g.domid() if not g.source.chance(8) else DOMID_SELF),
        Evtchn.INIT_CONTROL: lambda: structs.EvtchnInitControl(
            control_gfn=g.frame(),
            offset=g.source.pick((0, 64, 4096 - 72, 4096 - 64, 7, MASK32)),
            vcpu=g.vcpu(),
        ),
        Evtchn.EXPAND_ARRAY: lambda: structs.VcpuSetPeriodicTimer(period_ns=g.frame()),
        Evtchn.SET_PRIORITY: lambda: structs.EvtchnSetPriority(port=g.port(), priority=g.source.below(20)),
    }
    make = items.get(command)
    return command, _store(g, make() if make else structs.EvtchnSend(port=g.port()))


def event_channel_op_compat(g: Grammar) -> Arguments:
    """Command and arguments in one structure."""
    return (g.guest.put(struct.pack("<4I", g.source.u8() % 14, g.domid(), g.port(), g.port())),)


def sched_op(g: Grammar) -> Arguments:
    """Yield, block, poll, watchdogs; seldom the end."""
    command = g.source.pick((0, 0, 1, 1, 3, 3, 3, 5, 6, 6, 4, 7, 8, 2 if g.source.chance(16) else 0))
    if command == Sched.POLL:
        ports = struct.pack("<8I", *(g.port() for _ in range(8)))
        listed = g.guest.put(ports, _LISTS)
        request: AbiStruct = structs.SchedPoll(
            ports=listed, nr_ports=g.source.pick((0, 1, 2, 8, 128, 129)), timeout=g.time()
        )
    elif command == Sched.WATCHDOG:
        request = structs.SchedWatchdog(
            id=g.source.below(4), timeout=g.source.pick((0, 0, 1, 1000, MASK32, 1000))
        )
    else:
        request = structs.SchedShutdown(reason=g.source.u8() % 7)
    return command, _store(g, request)


def vcpu_op(g: Grammar) -> Arguments:
    """Initialise, up and down, timers, areas."""
    command = g.source.pick((0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11, 12, 13, 14))
    number = g.vcpu()
    guest = g.guest
    if command == VcpuOp.INITIALISE:
        return command, number, guest.put(_context(g))
    if command == VcpuOp.REGISTER_VCPU_INFO:
        offset = g.source.pick((0, 64, 2048, 4096 - 64, 4096 - 63, 4095, 12, MASK32))
        return command, number, _store(g, structs.VcpuRegisterVcpuInfo(mfn=g.frame(), offset=offset))
    if command in (VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA):
        return command, number, _words(g, [g.va()])
    period = g.time()
    if command == VcpuOp.DOWN and number == 0 and not g.source.chance(32):
        number = 1
    return command, number, _store(g, structs.VcpuSetSingleshotTimer(timeout_abs_ns=period, flags=0))


def _context(g: Grammar) -> bytes:
    """A vcpu_guest_context that is sensible but for what the input spoils."""
    guest = g.guest
    raw = bytearray(shared.GC_SIZE)

    def put(offset: int, value: int) -> None:
        struct.pack_into("<Q", raw, offset, value & (1 << 64) - 1)

    base = shared.GC_USER_REGS
    put(base + shared.USER_REGS["rip"], guest.code)
    put(base + shared.USER_REGS["rsp"], guest.stack)
    put(base + shared.USER_REGS["cs"], 0xE033)
    put(base + shared.USER_REGS["ss"], 0xE02B)
    put(base + shared.USER_REGS["rflags"], 0x200)
    put(shared.GC_FLAGS, shared.VGCF_IN_KERNEL if not g.source.chance(64) else g.source.u8())
    put(shared.GC_KERNEL_SS, 0xE02B)
    put(shared.GC_KERNEL_SP, guest.stack + 1024)
    l4 = guest.tables[0] if not g.source.chance(48) else g.frame()
    put(shared.GC_CTRLREG + 24, l4 << 12)
    if g.source.chance(64):
        put(shared.GC_CTRLREG + 8, g.frame() << 12)
    if g.source.chance(64):
        put(shared.GC_GDT_FRAMES, g.frame())
        put(shared.GC_GDT_ENTS, g.source.pick((1, 512, 513, 7168, 7169)))
    put(shared.GC_EVENT_CALLBACK, guest.handler(248))
    put(shared.GC_SYSCALL_CALLBACK, guest.handler(249))
    for _ in range(g.source.u8() & 3):
        put(g.source.number(2) % (shared.GC_SIZE - 8), g.word())
    return bytes(raw)


def physdev_op(g: Grammar) -> Arguments:
    """IOPL and I/O bitmap."""
    if g.source.chance(128):
        return 6, g.guest.put(struct.pack("<I", g.source.below(5)))
    request = physdev.PhysdevSetIobitmap(bitmap=g.va(), nr_ports=g.source.pick((0, 1024, 65536, 65537)))
    return g.source.pick((7, 7, 7, 8)), _store(g, request)


def physdev_op_compat(g: Grammar) -> Arguments:
    """Command and arguments in one structure."""
    return (g.guest.put(struct.pack("<IIQQ", g.source.pick((6, 7, 1)), 0, g.source.below(5), g.source.u8())),)


def multicall(g: Grammar) -> Arguments:
    """A few calls, each with what its own request has put into the same argument pages."""
    entries = []
    for _ in range(_several(g)):
        number = g.source.pick(NUMBERS)
        arguments = () if number in (13, 2, 23) else REQUESTS[number](g)
        padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
        mask = (1 << g.guest.width) - 1
        entries.append(
            structs.MulticallEntry(
                op=number,
                **{f"arg{index}": value & mask for index, value in enumerate(padded)},
            )
        )
    data = b"".join(pack(entry, g.guest.width) for entry in entries)
    return g.guest.put(data, 2048), len(entries)


def xen_version(g: Grammar) -> Arguments:
    """Questions; two of them take a structure."""
    command = g.source.u8() % 12
    return command, _store(g, structs.FeatureInfo(submap_idx=g.source.below(2))) if command == 6 else g.va()


def console_io(g: Grammar) -> Arguments:
    """Text, long or short."""
    return g.source.below(3), g.source.pick((0, 1, 80, 4096, 5000, 1 << 20, MASK32)), g.va()


def raw(g: Grammar) -> Arguments:
    """Five numbers."""
    return tuple(g.word() for _ in range(5))


def _u8(g: Grammar) -> int:
    return g.source.u8()


REQUESTS: dict[int, Callable[[Grammar], Arguments]] = {
    Hypercall.SET_TRAP_TABLE: set_trap_table,
    Hypercall.MMU_UPDATE: mmu_update,
    Hypercall.SET_GDT: set_gdt,
    Hypercall.STACK_SWITCH: plain(
        Grammar.selector, lambda g: g.guest.stack if g.source.chance(200) else g.va()
    ),
    Hypercall.SET_CALLBACKS: plain(Grammar.va, Grammar.va, Grammar.va),
    Hypercall.FPU_TASKSWITCH: plain(_u8),
    Hypercall.SCHED_OP_COMPAT: plain(lambda g: g.source.below(2), _u8),
    Hypercall.SET_DEBUGREG: plain(lambda g: g.source.below(9), Grammar.word),
    Hypercall.GET_DEBUGREG: plain(lambda g: g.source.below(9)),
    Hypercall.UPDATE_DESCRIPTOR: update_descriptor,
    Hypercall.MEMORY_OP: memory_op,
    Hypercall.MULTICALL: multicall,
    Hypercall.UPDATE_VA_MAPPING: update_va_mapping,
    Hypercall.SET_TIMER_OP: plain(Grammar.time),
    Hypercall.EVENT_CHANNEL_OP_COMPAT: event_channel_op_compat,
    Hypercall.XEN_VERSION: xen_version,
    Hypercall.CONSOLE_IO: console_io,
    Hypercall.PHYSDEV_OP_COMPAT: physdev_op_compat,
    Hypercall.GRANT_TABLE_OP: grant_table_op,
    Hypercall.VM_ASSIST: plain(
        lambda g: g.source.below(3), lambda g: g.source.pick((0, 1, 2, 2, 3, 4, 5, 32, 33))
    ),
    Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN: update_va_mapping_otherdomain,
    Hypercall.IRET: iret,
    Hypercall.VCPU_OP: vcpu_op,
    Hypercall.SET_SEGMENT_BASE: plain(
        lambda g: g.source.below(5), lambda g: g.va() if g.source.chance(128) else g.selector()
    ),
    Hypercall.MMUEXT_OP: mmuext_op,
    Hypercall.NMI_OP: nmi_op,
    Hypercall.SCHED_OP: sched_op,
    Hypercall.CALLBACK_OP: callback_op,
    Hypercall.EVENT_CHANNEL_OP: event_channel_op,
    Hypercall.PHYSDEV_OP: physdev_op,
}
NUMBERS = tuple(REQUESTS)
