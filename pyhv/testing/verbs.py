# SPDX-License-Identifier: GPL-2.0-only
"""Hypercalls as methods: what a kernel would write in C, a test writes in Python.

    guest.set_gdt(frames, 512)                                     arguments as the handler declares them
    guest.vcpu_op(VcpuOp.UP, 1)
    bound = EvtchnBindVirq(virq=Virq.TIMER, vcpu=0)
    assert guest.event_channel_op(bound) == 0                      the structure says which command; results
    assert guest.event_channel_op(EvtchnClose(port=bound.port)) == 0        come back in it
    assert guest.mmuext(Mmuext.PIN_L4_TABLE, mfn) == -Errno.EINVAL

Structures are laid out for the guest's width and stored in a place of their own. An `int` instead of one is
an address, for tests of pointers. Most methods are made of the table's handlers, so their signatures cannot
differ.
"""

from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import (
    MEMOP_EXTENT_SHIFT,
    CallbackOp,
    Evtchn,
    Gnttab,
    Hypercall,
    MemoryOp,
    NmiOp,
    Physdev,
    Sched,
    VcpuOp,
    Xenver,
)
from pyhv.abi.structs import MmuextOp, MmuUpdate, MulticallEntry
from pyhv.hypercalls import cpustate, debugreg, events, mmu, mmuext, multicall, physdev, refused, sched
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.registry import COMMANDS, HYPERCALLS

_P = ParamSpec("_P")

Argument = AbiStruct | int
"""A structure, to be stored for the call and read back after it, or an address."""


class Result(int):
    """What a hypercall returned; an error prints as `-EINVAL`, and equals `-Errno.EINVAL`."""

    @property
    def errno(self) -> Errno | None:
        """The error; None for a value."""
        try:
            return Errno(-self)
        except ValueError:
            return None

    def __repr__(self) -> str:
        errno = self.errno
        return str(int(self)) if errno is None else f"-{errno.name}"


def _verb(
    handler: Callable[Concatenate[Call, _P], int],
) -> "Callable[Concatenate[Verbs, _P], Result]":
    """The method that makes the hypercall of a handler, with its arguments."""
    entry = next(one for one in HYPERCALLS if one is not None and one.handler is handler)

    def perform(self: "Verbs", /, *args: _P.args, **kwargs: _P.kwargs) -> Result:
        assert not kwargs, "the arguments of a hypercall have an order"
        values = [value for value in args if isinstance(value, int)]
        return self.call(entry.number, *entry.form(self.width).words(values))

    return perform


class Verbs:
    """Hypercalls of a guest that can make one with numbers in registers, and can store bytes."""

    @property
    def width(self) -> int:
        """Bits of the caller's registers, pointers and structures."""
        raise NotImplementedError

    def call(self, number: int, *arguments: int) -> Result:
        """Make a hypercall with these words in its argument registers."""
        raise NotImplementedError

    def store(self, data: bytes) -> int:
        """Put bytes where the next call does not put its own; their address."""
        raise NotImplementedError

    def fetch(self, address: int, length: int) -> bytes:
        """Bytes of the guest's memory."""
        raise NotImplementedError

    set_trap_table = _verb(cpustate.set_trap_table)
    set_gdt = _verb(cpustate.set_gdt)
    stack_switch = _verb(cpustate.stack_switch)
    set_callbacks = _verb(cpustate.set_callbacks)
    fpu_taskswitch = _verb(cpustate.fpu_taskswitch)
    update_descriptor = _verb(cpustate.update_descriptor)
    vm_assist = _verb(cpustate.vm_assist)
    set_segment_base = _verb(cpustate.set_segment_base)
    set_debugreg = _verb(debugreg.set_debugreg)
    get_debugreg = _verb(debugreg.get_debugreg)
    update_va_mapping = _verb(mmu.update_va_mapping)
    update_va_mapping_otherdomain = _verb(mmu.update_va_mapping_otherdomain)
    mmu_update_list = _verb(mmu.mmu_update)
    mmuext_op_list = _verb(mmuext.mmuext_op)
    multicall_list = _verb(multicall.multicall)
    set_timer_op = _verb(sched.set_timer_op)
    sched_op_compat = _verb(sched.sched_op_compat)
    event_channel_op_compat = _verb(events.event_channel_op_compat)
    physdev_op_compat = _verb(physdev.physdev_op_compat)
    console_io = _verb(refused.console_io)

    # -- lists of structures -------------------------------------------------------------------------------

    def mmu_update(self, *requests: MmuUpdate, done: int = 0, domid: int = DOMID_SELF) -> Result:
        """mmu_update of a list; `done` is the address where the count goes."""
        return self.mmu_update_list(self._array(requests), len(requests), done, domid)

    def mmuext(
        self, command: int, arg1: int = 0, arg2: int = 0, *, done: int = 0, domid: int = DOMID_SELF
    ) -> Result:
        """mmuext_op of one operation."""
        return self.mmuext_op(MmuextOp(cmd=command, arg1=arg1, arg2=arg2), done=done, domid=domid)

    def mmuext_op(self, *operations: MmuextOp, done: int = 0, domid: int = DOMID_SELF) -> Result:
        """mmuext_op of a list; `done` is the address where the count goes."""
        return self.mmuext_op_list(self._array(operations), len(operations), done, domid)

    def multicall(self, *entries: MulticallEntry) -> Result:
        """multicall of a list, whose results come back in it."""
        at = self._array(entries)
        result = self.multicall_list(at, len(entries))
        self._read_back(at, entries)
        return result

    def grant_table_op(self, *requests: AbiStruct, command: Gnttab | None = None) -> Result:
        """grant_table_op of a list, whose results come back in it; the structure says which command."""
        at = self._array(requests)
        number = self._command(Hypercall.GRANT_TABLE_OP, requests[0]) if command is None else command
        result = self.call(Hypercall.GRANT_TABLE_OP, number, at, len(requests))
        self._read_back(at, requests)
        return result

    # -- commands with one structure -----------------------------------------------------------------------

    def event_channel_op(self, request: AbiStruct, command: Evtchn | None = None) -> Result:
        """event_channel_op; the structure says which command."""
        number = self._command(Hypercall.EVENT_CHANNEL_OP, request) if command is None else command
        return self._with(request, lambda at: self.call(Hypercall.EVENT_CHANNEL_OP, number, at))

    def memory_op(self, command: MemoryOp | int, argument: Argument = 0, start: int = 0) -> Result:
        """memory_op, from extent `start` on."""
        number = command | start << MEMOP_EXTENT_SHIFT
        return self._with(argument, lambda at: self.call(Hypercall.MEMORY_OP, number, at))

    def vcpu_op(self, command: VcpuOp | int, vcpu: int = 0, argument: Argument = 0) -> Result:
        """vcpu_op."""
        return self._with(argument, lambda at: self.call(Hypercall.VCPU_OP, command, vcpu, at))

    def sched_op(self, command: Sched | int, argument: Argument = 0) -> Result:
        """sched_op."""
        return self._with(argument, lambda at: self.call(Hypercall.SCHED_OP, command, at))

    def xen_version(self, command: Xenver | int, argument: Argument = 0) -> Result:
        """xen_version."""
        return self._with(argument, lambda at: self.call(Hypercall.XEN_VERSION, command, at))

    def physdev_op(self, command: Physdev | int, argument: Argument = 0) -> Result:
        """physdev_op."""
        return self._with(argument, lambda at: self.call(Hypercall.PHYSDEV_OP, command, at))

    def callback_op(self, command: CallbackOp | int, argument: Argument = 0) -> Result:
        """callback_op."""
        return self._with(argument, lambda at: self.call(Hypercall.CALLBACK_OP, command, at))

    def nmi_op(self, command: NmiOp | int, argument: Argument = 0) -> Result:
        """nmi_op."""
        return self._with(argument, lambda at: self.call(Hypercall.NMI_OP, command, at))

    # -- inside --------------------------------------------------------------------------------------------

    def _with(self, argument: Argument, perform: Callable[[int], Result]) -> Result:
        if isinstance(argument, int):
            return perform(argument)
        at = self._array((argument,))
        result = perform(at)
        self._read_back(at, (argument,))
        return result

    def _array(self, items: Iterable[AbiStruct]) -> int:
        return self.store(b"".join(item.pack(self.width) for item in items))

    def _read_back(self, at: int, items: Iterable[AbiStruct]) -> None:
        for item in items:
            size = item.size(self.width)
            vars(item).update(vars(type(item).unpack(self.fetch(at, size), self.width)))
            at += size

    @staticmethod
    def _command(hypercall: Hypercall, request: AbiStruct) -> int:
        """The only command that takes this structure."""
        operations = COMMANDS[hypercall].operations.values()
        (number,) = [one.number for one in operations if one.structure is type(request)]
        return number
