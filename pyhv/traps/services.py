# SPDX-License-Identifier: GPL-2.0-only
"""What a hypercall may do to its caller's processor: `context.CallerProcessor` over a `GuestCpu`."""

from collections.abc import Mapping
from typing import ClassVar

from pyhv.cpu import vmcb as v
from pyhv.traps import segments
from pyhv.traps.guestcpu import GuestCpu


class ProcessorServices:
    """`hypercalls.context.CallerProcessor` over a `GuestCpu`."""

    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("_cpu", "iret", "new_baseptr", "new_base_pointers", "drop_ldt", "load_ldtr"),
        "the domain's processor",
    )

    def __init__(self, cpu: GuestCpu) -> None:
        self._cpu = cpu
        self.iret = cpu.iret
        self.new_baseptr = cpu.new_baseptr
        self.new_base_pointers = cpu.new_base_pointers
        self.drop_ldt = cpu.drop_ldt
        self.load_ldtr = cpu.load_ldtr

    def set_fs_base(self, base: int) -> None:
        """Set the hidden FS base."""
        self._cpu.vmcb.q[v.SEG_BASE[v.FS]] = base

    def set_gs_base(self, base: int) -> None:
        """Set the active GS base."""
        self._cpu.vmcb.q[v.SEG_BASE[v.GS]] = base

    def load_user_gs(self, selector: int) -> None:
        """Load a selector into user mode's GS: its base, and the selector itself."""
        segments.load_user_gs(self._cpu, selector | 3 if selector > 3 else selector)

    def breakpoints_changed(self) -> None:
        """Debug registers were written: look at them at the end of this exit."""
        self._cpu.rearrange = True

    def set_task_switched(self, on: bool) -> None:
        """Set or clear CR0.TS."""
        self._cpu.vmcb.task_switched = on
