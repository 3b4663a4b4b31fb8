from libc.stdint cimport uint64_t

cdef class SharedPage:
    cdef public uint64_t mfn
    cpdef write_u8(self, uint64_t offset, unsigned char value)
