from libc.stdint cimport uint64_t, uint32_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Octets, Words64, words64, octets, nine_at, nine_in, two_at, two_in, word32_at, word64_at
from pyhv.mmu.physical cimport PhysicalMemory

cdef class Translation:
    cdef public uint64_t address, flags, entry

cdef class GuestMemory:
    cdef public PhysicalMemory physical
    cdef public object ram, leaves
    cdef public int width
    cdef public uint64_t l4
    cdef uint64_t _hole_start, _hole_last
    cdef object _copy
    cdef readonly dict _views
    cdef dict _readable, _writable
    # RAM. A walk begins in the frame `l4`, which is a validated table (`restore` looks that it exists), or 0; each
    # entry that is present names a frame of RAM, since it was validated when it was stored; the hypervisor's own
    # slots are never walked. So is what the caches of translations hold. Words that would cross the end of
    # their page are read by pieces.
    cdef Octets _raw
    cdef Words64 _q
    cpdef use(self, l4)
    @cython.locals(q=Words64, at=uint64_t, entry=uint64_t, granted=uint64_t, touched=uint64_t, base=uint64_t)
    cdef uint64_t _miss(self, uint64_t va, bint write) except? 0xDEADBEEF
    cpdef uint64_t for_read(self, va) except? 0xDEADBEEF
    cpdef uint64_t for_write(self, va) except? 0xDEADBEEF
    cpdef bytes read(self, va, length)
    cpdef write(self, va, bytes data)
    cpdef uint32_t read_u32(self, va) except? 0xDEADBEEF
    cpdef uint64_t read_u64(self, va) except? 0xDEADBEEF
    cdef uint64_t word_for_read(self, uint64_t va) except? 0xDEADBEEF
    cdef word_write(self, uint64_t va, bytes data)
    cdef Words64 words9(self, uint64_t va) except *
    cdef Words64 words2(self, uint64_t va) except *
    @cython.locals(q=Words64, entry=uint64_t, shift=int)
    cpdef leaf_entry(self, uint64_t va)
    cpdef forget(self)
