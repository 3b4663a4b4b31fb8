from libc.stdint cimport uint64_t, uint32_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Octets, Words64, words64, octets, nine_at, nine_in
from pyhv.mmu.physical cimport PhysicalMemory

cdef class Translation:
    cdef public uint64_t address, flags, entry

cdef class GuestMemory:
    cdef public PhysicalMemory physical
    cdef public object ram, leaves
    cdef public int width
    cdef public uint64_t l4
    cdef object _hole_start, _hole_end
    cdef object _copy
    cdef dict _views, _readable, _writable
    cdef Octets _raw
    cdef Words64 _q
    cpdef use(self, l4)
    @cython.locals(q=Words64, at=uint64_t, entry=uint64_t, granted=uint64_t, touched=uint64_t, base=uint64_t)
    cdef uint64_t _miss(self, uint64_t va, bint write) except? 0xDEADBEEF
    cpdef uint64_t for_read(self, uint64_t va) except? 0xDEADBEEF
    cpdef uint64_t for_write(self, uint64_t va) except? 0xDEADBEEF
    cpdef write(self, uint64_t va, data)
    cdef Words64 words9(self, uint64_t va) except *
