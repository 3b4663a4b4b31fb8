from libc.stdint cimport uint64_t, uint32_t
from pyhv.cpu.words cimport Words32, Words64, words64, words32, FlagsReader, flags_reader, lazy_flags

cdef class Vmcb:
    cdef public object raw, q, d
    cdef FlagsReader _lazy
    # The engine's state block, of vmcb.SIZE bytes; each index is a constant below it. It ends with its engine,
    # whose `close` releases the views `q` and `d`: the plain lane would notice who comes later.
    cdef Words64 _q
    cdef Words32 _d
    cpdef uint64_t rflags(self) except? 0xDEADBEEF
    cpdef set_rflags(self, uint64_t value)
    cpdef set_segment(self, int segment, uint32_t selector, uint64_t base, uint32_t limit, uint32_t flags)
