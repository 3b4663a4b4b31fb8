from pyhv.domain.fields cimport VcpuFields
from pyhv.mmu.memory cimport GuestMemory

cdef class CallFields:
    cdef public VcpuFields vcpu
    cdef public GuestMemory memory
    cdef public int width, word
    cdef public bint left_context, reschedule
