from libc.stdint cimport uint64_t, uint32_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Octets, Words32, Words64, words64, words32, octets

cdef class SyscallSink:
    cpdef syscall(self, uint64_t length)

cdef class SyscallHook:
    cdef SyscallSink _sink
    cdef object _engine, _keep, _syscall
    cdef dict _pages
    # The state block, indexed with constants. RAM, at an offset in a page that the engine's own tables name: their
    # entries have been validated, and name frames of RAM.
    cdef Words64 _q
    cdef Words32 _d
    cdef Octets _raw
    cdef public bint draining
    @cython.locals(rip=uint64_t, length=uint64_t)
    cpdef enter(self, _engine=*, _data=*)

cdef inline void _entered(void *engine, SyscallHook hook) noexcept with gil:
    hook.enter()

cdef inline uint64_t native_entry(SyscallHook hook):
    return <uint64_t> &_entered
