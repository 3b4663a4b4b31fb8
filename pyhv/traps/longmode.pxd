from libc.stdint cimport uint64_t, uint32_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Octets, packed7, packed8
from pyhv.mmu.paging cimport L4Cache
from pyhv.traps.guestcpu cimport GuestCpu
from pyhv.domain.fields cimport VcpuFields, NmiFields, PagingFields, CallbackFields
from pyhv.events.vcpu_info cimport VcpuInfo

cdef class LongModeCpu(GuestCpu):
    @cython.locals(vcpu=VcpuFields, paging=PagingFields, cache=L4Cache, cr3=uint64_t, cpl=uint32_t)
    cpdef arrange(self)
    @cython.locals(vcpu=VcpuFields, paging=PagingFields)
    cdef _change_mode(self, bint to_kernel)
    @cython.locals(paging=PagingFields)
    cdef int _hardware_cpl(self)
    @cython.locals(vcpu=VcpuFields, info=VcpuInfo, flags=uint64_t, masked=uint64_t, cs=uint64_t, ss=uint64_t,
                   stack=uint64_t, rip=uint64_t, rsp=uint64_t, saved_flags=uint64_t, size=uint64_t)
    cpdef bounce(self, uint64_t address, bint masks, error=*, bint flat=*, frame=*, tuple extra=*, rflags=*)
    @cython.locals(callback=CallbackFields, rflags=uint64_t)
    cpdef system_call(self, uint64_t length)
    @cython.locals(vcpu=VcpuFields, stack=uint64_t, rax=uint64_t, r11=uint64_t, rcx=uint64_t, flags=uint64_t,
                   rip=uint64_t, cs=uint32_t, rflags=uint64_t, rsp=uint64_t, ss=uint32_t, live=uint64_t)
    cpdef iret(self)
    cpdef make_flat(self)
    @cython.locals(vcpu=VcpuFields, due=Octets, nmi=NmiFields)
    cdef _sysret(self, uint64_t rip, uint64_t rflags, uint32_t cs, uint32_t ss)
    @cython.locals(hflags=uint32_t, both=uint32_t)
    cdef _load_return_segments(self, uint32_t cs, uint32_t ss)
