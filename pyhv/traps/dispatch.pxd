from libc.stdint cimport uint64_t, uint32_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Octets, Words32, Words64, words64, words32, new_words64
from pyhv.cpu.exithooks cimport DirectSink
from pyhv.mmu.tables cimport PageTables
from pyhv.traps.guestcpu cimport GuestCpu
from pyhv.domain.fields cimport VcpuFields
from pyhv.hypercalls.context cimport CallFields
from pyhv.hypercalls.signature cimport Form

cdef class Dispatcher(DirectSink):
    cdef public object host, domain, clock, ports, breakpoints, calls, engine
    cdef public CallFields call
    cdef public object counts, hypercalls
    cdef public list observers, forms
    cdef object _recent
    # The counters, indexed with an `ExitKind`, and with a number below NR_HYPERCALLS; the ring of the latest exits.
    cdef Words64 _counted, _made, _noted
    cdef public uint64_t unknown_hypercalls, events_delivered, emulated
    cdef uint64_t _exits
    cdef object _posted, _argument_registers, _charge, _overdue, _page_fault
    cdef tuple _views
    cdef bint _wide
    cdef object _mask
    cdef public GuestCpu cpu
    # The engine's state block, indexed with constants (`vmcb.pxd`).
    cdef Words32 _d
    cdef Words64 _q
    @cython.locals(exits=uint64_t, at=uint64_t)
    cdef _count(self, int kind, uint64_t detail)
    @cython.locals(vcpu=VcpuFields, cpu=GuestCpu, tables=PageTables, flags=Octets)
    cpdef finish(self)
    @cython.locals(number=uint32_t)
    cpdef syscall(self, uint64_t length)
    @cython.locals(after=uint64_t)
    cdef _hypercall(self, uint32_t number, uint64_t length)
    @cython.locals(call=CallFields, form=Form)
    cdef _perform(self, uint32_t number, uint64_t length)
    @cython.locals(d=Words32, is_software=bint)
    cpdef exception(self, int vector)
    cdef _deliver_event(self)
