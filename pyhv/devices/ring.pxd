cimport cython
from libc.stdint cimport uint32_t
from pyhv.shared_page cimport SharedPage

# No pointers: the page is reached through its methods, at offsets below _data + size, _cons or _prod, which are
# those of a protocol; a place in the ring is masked with size - 1.
cdef class ByteRing:
    cdef public uint32_t size
    cdef SharedPage _page
    cdef uint32_t _data, _cons, _prod
    cpdef uint32_t used(self) except? 0xDEADBEEF
    @cython.locals(cons=uint32_t, count=uint32_t, start=uint32_t, first=uint32_t)
    cpdef bytes read(self, limit=*)
    @cython.locals(prod=uint32_t, count=uint32_t, start=uint32_t, first=uint32_t)
    cpdef write(self, bytes data)
    @cython.locals(used=uint32_t)
    cdef uint32_t _used(self, uint32_t cons, uint32_t prod) except? 0xDEADBEEF
