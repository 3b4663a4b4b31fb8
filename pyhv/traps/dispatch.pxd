from libc.stdint cimport uint64_t, uint32_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Octets, Words32, Words64, words64, words32
from pyhv.cpu.sysentry cimport SyscallSink
from pyhv.mmu.tables cimport PageTables
from pyhv.traps.guestcpu cimport GuestCpu
from pyhv.domain.fields cimport VcpuFields
from pyhv.hypercalls.context cimport CallFields

cdef class Dispatcher(SyscallSink):
    cdef public object host, domain, clock, ports, breakpoints, calls, engine
    cdef public CallFields call
    cdef public list counts, hypercalls, observers
    cdef list _recent
    cdef public uint64_t unknown_hypercalls, events_delivered, emulated
    cdef uint64_t _exits
    cdef object _posted, _argument_registers, _arguments, _charge, _overdue, _page_fault
    cdef tuple _views
    cdef list _forms
    cdef bint _wide
    cdef object _mask
    cdef public GuestCpu cpu
    # The engine's state block, indexed with constants (`vmcb.pxd`).
    cdef Words32 _d
    cdef Words64 _q
    cdef _count(self, int kind, detail)
    @cython.locals(vcpu=VcpuFields, cpu=GuestCpu, tables=PageTables, flags=Octets)
    cpdef finish(self)
    @cython.locals(number=uint32_t)
    cpdef syscall(self, uint64_t length)
    @cython.locals(after=uint64_t)
    cdef _hypercall(self, uint32_t number, uint64_t length)
    @cython.locals(call=CallFields)
    cdef _perform(self, uint32_t number, uint64_t length)
    cdef _deliver_event(self)
