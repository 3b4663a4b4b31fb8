# SPDX-License-Identifier: GPL-2.0-only
"""What a hypercall handler is given: its caller, and the services of machine and processor as protocols.

Handlers change domain state and return; they never see a register. What needs the processor (iret, segment
bases) or other domains goes through `CallerProcessor` and `Host`, which the layers above implement.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol, TypeVar

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.layout import AbiStruct
from pyhv.address import MASK64, Mfn
from pyhv.clock import STEPS_A_LOOK
from pyhv.domain.domain import Domain
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import XenError
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.memory import GuestMemory
from pyhv.mmu.physical import PhysicalMemory
from pyhv.mmu.tables import PageTables

_S = TypeVar("_S", bound=AbiStruct)

_STEP_NS: Final = 250
"""What a step costs in virtual time."""
_STEPS_A_TABLE: Final = 16
"""What approving or dropping a whole page table costs, in steps: it is as much work as so many hypercalls."""


WATCHDOGS: Final = 2
"""Watchdog timers of a domain."""


class CallerProcessor(Protocol):
    """The calling vCPU's processor."""

    def iret(self) -> None:
        """Leave through the iret frame on the stack."""

    def new_baseptr(self, mfn: int) -> None:
        """Make `mfn` the kernel's L4; EINVAL if it cannot be one."""

    def new_base_pointers(self) -> None:
        """A base pointer of the vCPU has changed."""

    def drop_ldt(self) -> None:
        """Forget faulted-in LDT pages."""

    def load_ldtr(self) -> None:
        """The LDT's base or size has changed."""

    def set_fs_base(self, base: int) -> None:
        """Set the hidden FS base."""

    def set_gs_base(self, base: int) -> None:
        """Set the active GS base."""

    def load_user_gs(self, selector: int) -> None:
        """Load a selector into the GS of user mode."""

    def set_task_switched(self, on: bool) -> None:
        """Set or clear the flag that makes FPU instructions fault."""

    def breakpoints_changed(self) -> None:
        """The vCPU's debug registers were written."""


class Host(Protocol):
    """The machine, as far as a hypercall may use it."""

    frames: FrameTable
    physical: PhysicalMemory
    m2p_frames: list[Mfn]
    compat_m2p_frames: list[Mfn]

    def now(self) -> int:
        """System time in ns."""

    def domain(self, domid: int) -> Domain | None:
        """A living domain."""

    def any_domain(self, domid: int) -> Domain | None:
        """A domain that lives or is dying."""

    def block(self, vcpu: Vcpu) -> None:
        """Take the vCPU off the processor until an event comes."""

    def yield_(self, vcpu: Vcpu) -> None:
        """Let others run."""

    def wake(self, vcpu: Vcpu) -> None:
        """The vCPU has an event to take: it no longer blocks."""

    def poll(self, vcpu: Vcpu, ports: frozenset[int], timeout: int) -> None:
        """Block until one of the ports is pending, any event is, or `timeout` (ns, 0: never)."""

    def end_domain(self, domain: Domain, reason: int) -> None:
        """The domain has shut down."""

    def halt_domain(self, domain: Domain) -> None:
        """The domain's last vCPU has gone down."""

    def set_timer(self, vcpu: Vcpu, deadline: int) -> None:
        """Arm the one-shot timer (ns), 0 disarms."""

    def set_periodic(self, vcpu: Vcpu, period: int) -> None:
        """Arm the periodic timer with a period in ns, 0 disarms."""

    def watchdog_runs(self, domain: Domain, number: int) -> bool:
        """Whether a domain watchdog is armed."""

    def set_watchdog(self, domain: Domain, number: int, deadline: int) -> None:
        """Arm a domain watchdog (ns), 0 disarms."""

    def start_vcpu(self, vcpu: Vcpu) -> None:
        """Bring a vCPU up."""

    def stop_vcpu(self, vcpu: Vcpu) -> None:
        """Take a vCPU down."""

    def debug_output(self, domain: Domain, text: bytes) -> None:
        """Bytes for the hypervisor's console."""


class Invocable(Protocol):
    """A hypercall as guests of one width make it: `signature.Form`."""

    def invoke(self, call: "Call", a: int, b: int, c: int, d: int, e: int, f: int) -> int:
        """Call its handler with the words that hold arguments."""

    def words(self, values: Sequence[int]) -> list[int]:
        """The words that hold these arguments."""


class Again(Exception):
    """A long hypercall has used up its turn: it is to be made again with `arguments`, later.

    Raised by handlers between two steps, never inside one; what is done stays done.
    """

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.arguments = tuple(value & MASK64 for value in arguments)
        """A list may end with the address space: what comes next is then at 0, and not the guest's."""


class CallFields:
    """What of `Call` nearly every hypercall looks at."""

    __slots__ = ("left_context", "memory", "reschedule", "vcpu", "width", "word")


class Call(CallFields):
    """One vCPU's view for its handlers; lives as long as its domain."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("host", "domain", "vcpu", "processor", "memory", "tables", "frames", "performed", "forms"),
            "rebuilt",
        ),
        **dict.fromkeys(("width", "word"), "follows from the domain's width"),
        **dict.fromkeys(("left_context", "reschedule"), "live within an exit"),
    }

    def __init__(
        self,
        host: Host,
        domain: Domain,
        vcpu: Vcpu,
        processor: CallerProcessor,
        performed: memoryview,
        forms: Sequence[Invocable | None],
    ) -> None:
        self.host = host
        self.domain = domain
        self.vcpu = vcpu
        self.processor = processor
        self.width = domain.width
        """Bits of the caller's registers, pointers and structures."""
        self.word = domain.width // 8
        """Bytes of an `unsigned long` or a pointer of the caller."""
        self.memory: GuestMemory = domain.memory
        self.tables: PageTables = domain.tables
        self.frames = host.frames
        self.performed = performed
        """The domain's count of hypercalls by number, those inside multicalls included."""
        self.forms = forms
        """The domain's hypercalls by number, for those inside multicalls."""
        self.left_context = False
        """Set by iret: the caller's registers are no longer the ones it called with."""
        self.reschedule = False
        """Set when the vCPU must leave the processor."""

    def count_hypercall(self, number: int) -> None:
        """Note a sub-call of a multicall."""
        self.performed[number] += 1

    def preempted(self, steps: int) -> bool:
        """Charge the caller for `steps` of a long hypercall. True if its turn is over: if anything is left to
        do, it should raise `Again`. To be asked at least after every `STEPS_A_LOOK`.
        """
        return self.domain.clock.work(steps * _STEP_NS)

    def gives_way_to_tables(self) -> bool:
        """Ask between two tables of a large tree: whether the turn is over. Charges the caller for them."""
        return self.preempted(self.tables.take_work() * _STEPS_A_TABLE)

    def gives_way(self, done: int, count: int) -> bool:
        """Ask after step `done` of a list of `count`: whether to raise `Again`, never after the last.

        Charges the caller for its steps, and for page tables that they have approved or dropped; after such
        heavy ones it looks at the clock at once.
        """
        tables = self.tables.take_work() * _STEPS_A_TABLE
        due = done % STEPS_A_LOOK == 0
        if done == count:
            if tables or count > 1:
                self.preempted(tables + (done % STEPS_A_LOOK or STEPS_A_LOOK))
            return False
        if not (tables or due):
            return False
        return self.preempted(tables + (STEPS_A_LOOK if due else 0))

    def read(self, kind: type[_S], address: int) -> _S:
        """Read a structure as the caller lays it out; EFAULT."""
        return kind.of(self.fields(kind, address))

    def fields(self, kind: type[AbiStruct], address: int) -> tuple[Any, ...]:
        """Read a structure and return its fields alone, in their order: a fifth of the time; EFAULT."""
        return self.memory.unpack(kind.layout(self.width).packer, address)

    def write(self, address: int, value: AbiStruct) -> None:
        """Write a structure as the caller lays it out; EFAULT."""
        self.memory.write(address, value.pack(self.width))

    def read_word(self, address: int) -> int:
        """Read an `unsigned long` of the caller; EFAULT."""
        return self.memory.read_u64(address) if self.word == 8 else self.memory.read_u32(address)

    def write_word(self, address: int, value: int) -> None:
        """Write an `unsigned long` of the caller; EFAULT."""
        if self.word == 8:
            self.memory.write_u64(address, value)
        else:
            self.memory.write_u32(address, value)

    def own(self, domid: int) -> None:
        """Refuse any domain but the caller: ESRCH if there is none of that name, else EPERM."""
        if domid in (DOMID_SELF, self.domain.domid):
            return
        self.existing(domid)
        raise XenError(Errno.EPERM, f"domain {domid} is not the caller's to command")

    def existing(self, domid: int) -> None:
        """ESRCH for a domain that does not exist. Domain 0, the toolstack's, always does."""
        if domid != 0 and self.host.domain(domid) is None:
            raise XenError(Errno.ESRCH, f"no domain {domid}")

    def own_frame(self, number: int) -> Mfn:
        """The caller's frame of that number; EINVAL if it is not the caller's."""
        mfn = self.frames.owned(number, self.domain.domid)
        if mfn is None:
            raise XenError(Errno.EINVAL, f"{self.frames.describe(number)} is not the caller's")
        return mfn

    def peer_vcpu(self, number: int) -> Vcpu:
        """A vCPU of the caller's domain by number; ENOENT if there is none."""
        if number >= len(self.domain.vcpus):
            raise XenError(Errno.ENOENT, f"no vCPU {number}")
        return self.domain.vcpus[number]
