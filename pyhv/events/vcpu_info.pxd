from libc.stdint cimport uint64_t, uint8_t
from pyhv.cpu.words cimport Octets, octets
from pyhv.shared_page cimport SharedPage

cdef class VcpuInfo:
    cdef public int number, width
    cdef int _sel, _cr2
    cdef object _shared_info
    cdef public bint moved
    cdef public SharedPage page
    cdef public uint64_t offset
    cdef public object record
    # Its 64 bytes, wherever they are, indexed with constants below that; `check_place` has them within their page.
    cdef Octets flags
    cdef uint64_t _mask_at
    cpdef mask_upcalls(self, bint masked)
