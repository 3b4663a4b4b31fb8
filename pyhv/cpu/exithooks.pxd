from libc.stdint cimport uint64_t, uint32_t
cimport cython
from pyhv.cpu.words cimport Words32, Words64, words64, words32

cdef class DirectSink:
    cpdef syscall(self, uint64_t length)
    cpdef exception(self, int vector)

cdef class ExitHooks:
    cdef DirectSink _sink
    cdef object _engine, _keep, _syscall, _exception
    # The state block, indexed with constants.
    cdef Words64 _q
    cdef Words32 _d
    cdef public bint draining
    cpdef syscall(self, uint64_t length)
    @cython.locals(length=uint64_t)
    cpdef hooked_syscall(self, _engine=*, _data=*)
    cpdef exception(self, _engine, int vector, _data=*)

cdef inline void _syscall(ExitHooks hooks, uint64_t length) noexcept with gil:
    hooks.syscall(length)

cdef inline void _hooked_syscall(void *engine, ExitHooks hooks) noexcept with gil:
    hooks.hooked_syscall()

cdef inline void _exception(void *engine, uint32_t vector, ExitHooks hooks) noexcept with gil:
    hooks.exception(None, vector)

cdef inline uint64_t syscall_entry(ExitHooks hooks):
    return <uint64_t> &_syscall

cdef inline uint64_t syscall_hook(ExitHooks hooks):
    return <uint64_t> &_hooked_syscall

cdef inline uint64_t exception_entry(ExitHooks hooks):
    return <uint64_t> &_exception
