from libc.stdint cimport uint64_t
cimport cython
from pyhv.mmu.memory cimport GuestMemory

@cython.locals(memory=GuestMemory, number=uint64_t, op=uint64_t, fields=tuple)
cpdef perform_calls(call, calls, count)
