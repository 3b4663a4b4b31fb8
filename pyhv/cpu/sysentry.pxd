from libc.stdint cimport uint64_t
cimport cython
from pyhv.cpu.words cimport Words64, words64

cdef class SyscallSink:
    cpdef syscall(self, uint64_t length)

cdef class SyscallHook:
    cdef SyscallSink _sink
    cdef object _engine, _keep, _syscall
    # The state block, indexed with constants.
    cdef Words64 _q
    cdef public bint draining
    cpdef enter(self, uint64_t length)
    @cython.locals(length=uint64_t)
    cpdef hooked(self, _engine=*, _data=*)

cdef inline void _entered(SyscallHook hook, uint64_t length) noexcept with gil:
    hook.enter(length)

cdef inline void _hooked(void *engine, SyscallHook hook) noexcept with gil:
    hook.hooked()

cdef inline uint64_t native_entry(SyscallHook hook):
    return <uint64_t> &_entered

cdef inline uint64_t native_hook(SyscallHook hook):
    return <uint64_t> &_hooked
