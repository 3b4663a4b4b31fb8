from libc.stdint cimport uint64_t, uint32_t, uint8_t
from pyhv.cpu.words cimport Octets, Words32, Words64, words64, words32, octets, store
from pyhv.shared_page cimport SharedPage

cdef class PhysicalMemory:
    cdef public object ram, frames, invalidators, executors, shared_code
    cdef object _raw, _tables
    cdef Octets _octets
    cdef Octets _dirty
    cdef Octets _code
    cdef Words64 _q
    cdef Words32 _d
    cpdef write(self, uint64_t address, data)
    cpdef write_u64(self, uint64_t address, uint64_t value)
    cpdef write_u32(self, uint64_t address, uint32_t value)

cdef class FramePage(SharedPage):
    cdef PhysicalMemory _physical
    cdef public uint64_t base
    cdef Octets _octets
    cdef Octets _dirty
    cdef Octets _code
    cdef Words64 _q
    cdef Words32 _d
    cpdef write_u8(self, uint64_t offset, unsigned char value)
