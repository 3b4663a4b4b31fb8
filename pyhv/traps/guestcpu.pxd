from libc.stdint cimport uint64_t, uint32_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Words32, Words64, words64, words32
from pyhv.cpu.vmcb cimport Vmcb
from pyhv.domain.fields cimport VcpuFields
from pyhv.mmu.memory cimport GuestMemory
from pyhv.mmu.tables cimport PageTables

cdef class GuestCpu:
    cdef public object domain, engine, reserved_descriptors
    cdef public PageTables tables
    cdef public Vmcb vmcb
    # The engine's state block, indexed with constants (`vmcb.pxd`).
    cdef Words64 _q
    cdef Words32 _d
    cdef public int kernel_ring
    cdef public GuestMemory memory
    cdef public VcpuFields vcpu
    cdef public bint rebase, rearrange, stepping, has_breakpoints
    cpdef note_mode(self)
    cpdef arrange(self)
    cpdef make_flat(self)
    cpdef system_call(self, uint64_t length)
    cpdef iret(self)
    cpdef enter_callback(self, callback)
    cpdef deliver_event(self)
