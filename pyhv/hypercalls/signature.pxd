from libc.stdint cimport uint64_t

cdef class Form:
    cdef public int width
    cdef public object handler
    cdef public tuple arguments
    cdef bint _is_paired
    cdef int _count
    cdef uint64_t _mask_a, _mask_b, _mask_c, _mask_d, _mask_e
    cpdef invoke(self, call, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
