from libc.stdint cimport uint64_t
cimport cython

cdef class L4Cache:
    cdef public object ram, m2p, area
    cdef object _frames
    cdef readonly object _copies
    cdef readonly list _free
    cdef readonly dict _mergeable
    cdef public uint64_t generation
    cpdef hardware_l4(self, uint64_t l4, int variant)
    cpdef entry_changed(self, uint64_t l4, uint64_t slot, uint64_t entry)
    cpdef bint may_merge(self, uint64_t kernel, uint64_t user) except -1
