from libc.stdint cimport int64_t, uint64_t, uint32_t, uint16_t
from pyhv.events.vcpu_info cimport VcpuInfo

cdef class StackFields:
    cdef public uint64_t sp
    cdef public uint16_t ss

cdef class CallbackFields:
    cdef public uint64_t address
    cdef public bint mask_events
    cdef public uint16_t selector

cdef class CallbacksFields:
    cdef public CallbackFields event, failsafe, syscall, syscall32, sysenter

cdef class PagingFields:
    cdef public uint64_t kernel_l4, user_l4
    cdef public bint force_split, merged
    cdef public int64_t merge_known

cdef class NmiFields:
    cdef public bint pending, in_handler

cdef class PortFields:
    cdef public int iopl

cdef class DebugFields:
    cdef public bint unstepped

cdef class VcpuFields:
    cdef public VcpuInfo info
    cdef public bint in_kernel
    cdef public uint64_t other_gs_base
    cdef public PagingFields paging
    cdef public CallbacksFields callbacks
    cdef public StackFields kernel_stack
    cdef public PortFields ports
    cdef public DebugFields debug
    cdef public NmiFields nmi
    cdef public object traps, descriptors
