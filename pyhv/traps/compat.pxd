from libc.stdint cimport uint64_t, uint32_t, uint8_t
from pyhv.traps.guestcpu cimport GuestCpu

cdef class CompatCpu(GuestCpu):
    pass
