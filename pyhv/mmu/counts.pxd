from libc.stdint cimport uint64_t, uint32_t, uint16_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Octets, Words16, Words32, octets, words16, words32

cdef class FrameCounts:
    cdef public uint64_t count
    cdef Words16 owner
    cdef Octets type
    cdef Octets code
    cdef Words32 type_count
    cdef Words32 refs
    cdef Words32 exec_count
    cdef Words32 lent
    cdef Octets pinned
    cdef Words32 linear_in
    cdef Words32 linear_out
    cdef Octets last_l2
    cpdef bint may_be_writable(self, uint64_t mfn) except -1
    @cython.locals(left=uint32_t)
    cpdef drop(self, uint64_t mfn)
    cpdef bint take_writable(self, uint64_t mfn) except -1
    cpdef drop_writable(self, uint64_t mfn)
