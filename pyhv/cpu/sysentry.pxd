from libc.stdint cimport uint64_t, uint32_t, uint8_t
cimport cython
from pyhv.cpu.words cimport words64, words32, octets

cdef class SyscallHook:
    cdef object _engine, _keep, _syscall
    cdef dict _pages
    cdef uint64_t *_q
    cdef uint32_t *_d
    cdef uint8_t *_raw
    cdef public bint draining
    @cython.locals(rip=uint64_t, length=uint64_t, at=uint64_t)
    cpdef enter(self, _engine=*, _data=*)

cdef inline void _entered(void *engine, SyscallHook hook) noexcept with gil:
    hook.enter()

cdef inline uint64_t native_entry(SyscallHook hook):
    return <uint64_t> &_entered
