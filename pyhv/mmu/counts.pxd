from libc.stdint cimport uint64_t, uint32_t, uint16_t, uint8_t
cimport cython
from pyhv.cpu.words cimport Octets, Words16, Words32, octets, words16, words32

cdef class FrameCounts:
    cdef public uint64_t count
    # The columns, a word for each of `count` frames. Whoever holds a frame number has compared it with `count`
    # (`PageTables.check_leaf`, `take_upper`, `take_table`, `unpin`, `hypercalls/mmuentries`), or has it from an entry
    # that was approved, which is how `_release_leaf` and `_drop_upper` come by theirs.
    cdef Words16 owner
    cdef Octets type
    cdef Octets code
    cdef Words32 type_count
    cdef Words32 refs
    cdef Words32 exec_count
    cdef Words32 lent
    cdef Octets pinned
    cdef Words32 linear_in
    cdef Words32 linear_out
    cdef Octets last_l2
    cpdef bint may_be_writable(self, uint64_t mfn) except -1
    @cython.locals(left=uint32_t)
    cpdef drop(self, uint64_t mfn)
    cpdef bint take_writable(self, uint64_t mfn) except -1
    cpdef drop_writable(self, uint64_t mfn)
