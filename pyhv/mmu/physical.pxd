from libc.stdint cimport uint64_t, uint32_t, uint8_t
from pyhv.cpu.words cimport words64, words32, octets, store
from pyhv.shared_page cimport SharedPage

cdef class PhysicalMemory:
    cdef public object ram, frames, invalidators, executors, shared_code
    cdef object _raw, _tables
    cdef uint8_t *_octets
    cdef uint8_t *_dirty
    cdef uint8_t *_code
    cdef uint64_t *_q
    cdef uint32_t *_d
    cpdef write(self, uint64_t address, data)
    cpdef write_u64(self, uint64_t address, uint64_t value)
    cpdef write_u32(self, uint64_t address, uint32_t value)

cdef class FramePage(SharedPage):
    cdef PhysicalMemory _physical
    cdef public uint64_t base
    cdef uint8_t *_octets
    cdef uint8_t *_dirty
    cdef uint8_t *_code
    cdef uint64_t *_q
    cdef uint32_t *_d
    cpdef write_u8(self, uint64_t offset, unsigned char value)
