from libc.stdint cimport uint64_t, uint32_t, uint8_t

cdef class SharedPage:
    cdef public uint64_t mfn
    cpdef bytes read(self, uint64_t offset, Py_ssize_t length)
    cpdef write(self, uint64_t offset, data)
    cpdef uint8_t read_u8(self, uint64_t offset) except? 0xDE
    cpdef write_u8(self, uint64_t offset, uint8_t value)
    cpdef uint32_t read_u32(self, uint64_t offset) except? 0xDEADBEEF
    cpdef write_u32(self, uint64_t offset, uint32_t value)
    cpdef uint64_t read_u64(self, uint64_t offset) except? 0xDEADBEEF
    cpdef write_u64(self, uint64_t offset, uint64_t value)
