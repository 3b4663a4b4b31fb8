from libc.stdint cimport uint64_t, uint32_t, uint8_t
from pyhv.cpu.words cimport Octets, Words32, Words64, words64, words32, octets, fetch, store
from pyhv.shared_page cimport SharedPage

cdef class PhysicalMemory:
    cdef public object ram, frames, invalidators, executors, shared_code
    cdef object _raw, _tables
    cdef uint64_t _size
    # RAM, and a byte for each of its frames. Callers of `write_u64` and `write_u32` come with the address of an entry
    # in a frame that was found in the frame table, or by a walk through validated tables: it is below `_size`, and
    # its frame below `frames.count`. `read` and `write` look at `_size` themselves, before a frame is noted.
    cdef Octets _octets
    cdef Octets _dirty
    cdef Octets _code
    cdef Words64 _q
    cdef Words32 _d
    cpdef write(self, uint64_t address, data)
    cpdef write_u64(self, uint64_t address, uint64_t value)
    cpdef write_u32(self, uint64_t address, uint32_t value)
    cpdef bytes read(self, uint64_t address, Py_ssize_t length)

cdef class FramePage(SharedPage):
    cdef PhysicalMemory _physical
    cdef public uint64_t base
    # The same views. `base` is that of a frame that exists (`elsewhere` looks), and an offset is of a field that a
    # protocol has in its page: callers keep to the page, as `SharedPage` says.
    cdef Octets _octets
    cdef Octets _dirty
    cdef Octets _code
    cdef Words64 _q
    cdef Words32 _d
    cpdef bytes read(self, uint64_t offset, Py_ssize_t length)
    cpdef write(self, uint64_t offset, data)
    cpdef uint8_t read_u8(self, uint64_t offset) except? 0xDE
    cpdef write_u8(self, uint64_t offset, uint8_t value)
    cpdef uint32_t read_u32(self, uint64_t offset) except? 0xDEADBEEF
    cpdef write_u32(self, uint64_t offset, uint32_t value)
    cpdef uint64_t read_u64(self, uint64_t offset) except? 0xDEADBEEF
    cpdef write_u64(self, uint64_t offset, uint64_t value)
