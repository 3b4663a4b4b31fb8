from libc.stdint cimport uint64_t, uint32_t, uint8_t
cimport cython
from pyhv.mmu.counts cimport FrameCounts
from pyhv.mmu.tables cimport PageTables

cdef class PaePageTables(PageTables):
    cdef public bint l3_anywhere
    @cython.locals(frames=FrameCounts, mfn=uint64_t)
    cpdef _take_last_l2(self, uint64_t entry)
