from libc.stdint cimport uint64_t, int64_t, uint8_t
cimport cython
from pyhv.mmu.counts cimport FrameCounts
from pyhv.mmu.tables cimport PageTables

cpdef tell_done(call, uint64_t done, uint64_t completed)
@cython.locals(tables=PageTables, done=uint64_t, count=uint64_t, before=uint64_t, completed=uint64_t, continued=bint, in_time=bint)
cpdef perform_each(call, tuple arguments, size, perform)
@cython.locals(tables=PageTables, frames=FrameCounts)
cdef bint _perform(call, at, perform) except -1
