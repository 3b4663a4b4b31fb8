from libc.stdint cimport uint64_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Words64
from pyhv.mmu.counts cimport FrameCounts
from pyhv.mmu.memory cimport GuestMemory
from pyhv.mmu.tables cimport PageTables

cpdef update_entries(call, uint64_t requests, uint64_t count, uint64_t done, uint64_t foreigndom)
@cython.locals(memory=GuestMemory, words=Words64)
cpdef _update(call, uint64_t at)
@cython.locals(frames=FrameCounts, memory=GuestMemory, words=Words64, address=uint64_t, value=uint64_t, mfn=uint64_t)
cdef bint _only_one(call, uint64_t requests, uint64_t done) except -1
@cython.locals(frames=FrameCounts, tables=PageTables, command=int, mfn=uint64_t, address=uint64_t, preserve=bint, kind=int)
cpdef update_entry(call, uint64_t pointer, uint64_t value)
@cython.locals(frames=FrameCounts, tables=PageTables, memory=GuestMemory, address=uint64_t, mfn=uint64_t, kind=uint64_t, mask=uint64_t)
cpdef update_mapping(call, uint64_t va, uint64_t pte, uint64_t flags)
