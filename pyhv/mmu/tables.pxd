from libc.stdint cimport uint64_t, int64_t, uint32_t, uint8_t
cimport cython
from pyhv.cpu.words cimport COMPILED, Octets, Words64, octets, present_in, words64
from pyhv.mmu.counts cimport FrameCounts
from pyhv.mmu.memory cimport GuestMemory
from pyhv.mmu.paging cimport L4Cache
from pyhv.mmu.physical cimport PhysicalMemory

cdef class PageTables:
    cdef public int domid
    cdef public FrameCounts frames
    cdef public PhysicalMemory physical
    cdef public GuestMemory memory
    cdef public L4Cache cache
    cdef public object ram, code, budget
    cdef public int64_t borrowed, _work
    cdef public uint64_t updates, ahead_of
    cdef public int ahead_level
    cdef public bint flush, stale
    cdef public list flush_pages, ahead, doomed
    # RAM, at the machine address of an entry: callers come with one in a frame that the frame table has as a table
    # of theirs; a slot is below 512. `_known` has a byte for each frame, and is indexed as the columns are.
    cdef Words64 _q
    cdef Octets _known
    cpdef flush_page(self, uint64_t va)
    cpdef flushed(self)
    cpdef uint64_t forbidden(self, int level) except? 0xDEADBEEF
    cpdef uint64_t adjust_upper(self, int level) except? 0xDEADBEEF
    cpdef check_slot(self, uint64_t table, int level, int slot)
    cpdef prepare(self, uint64_t mfn, int level)
    cpdef list guest_slots(self, uint64_t mfn, int level)
    cpdef uint64_t adjust_leaf(self, uint64_t entry) except? 0xDEADBEEF
    @cython.locals(mfn=uint64_t, frames=FrameCounts)
    cpdef uint64_t check_leaf(self, uint64_t entry) except 0
    @cython.locals(frames=FrameCounts)
    cdef _take_leaf(self, uint64_t entry, uint64_t mfn)
    @cython.locals(frames=FrameCounts)
    cdef _take_execute(self, uint64_t mfn)
    @cython.locals(left=uint32_t)
    cdef _drop_execute(self, uint64_t mfn)
    @cython.locals(mfn=uint64_t, frames=FrameCounts)
    cdef uint64_t _release_leaf(self, uint64_t entry) except? 0
    cpdef drop_leaf(self, uint64_t entry)
    @cython.locals(q=Words64, at=uint64_t, old=uint64_t)
    cpdef update_l1(self, uint64_t address, uint64_t new, bint preserve_ad=*)
    cdef _store_leaf(self, uint64_t at, uint64_t new)
    @cython.locals(mfn=uint64_t)
    cpdef map_granted(self, uint64_t address, uint64_t new)
    @cython.locals(old=uint64_t)
    cpdef replace_leaf(self, uint64_t address, uint64_t new)
    @cython.locals(at=uint64_t, entry=uint64_t)
    cpdef uint64_t empty_leaf(self, uint64_t address) except? 0xDEADBEEF
    @cython.locals(mfn=uint64_t, frames=FrameCounts)
    cpdef take_upper(self, uint64_t table, int level, int slot, uint64_t entry)
    @cython.locals(frames=FrameCounts)
    cpdef take_linear(self, uint64_t table, int level, uint64_t mfn, uint64_t entry)
    @cython.locals(mfn=uint64_t, frames=FrameCounts)
    cdef _drop_upper(self, uint64_t table, int level, uint64_t entry)
    @cython.locals(table=uint64_t, slot=int, q=Words64, at=uint64_t, old=uint64_t)
    cpdef update_upper(self, uint64_t address, int level, uint64_t new, bint preserve_ad=*)
    @cython.locals(frames=FrameCounts)
    cpdef uint64_t take_table(self, uint64_t number, int level) except 0
    @cython.locals(frames=FrameCounts, left=uint32_t)
    cpdef drop_table(self, uint64_t mfn)
    @cython.locals(frames=FrameCounts)
    cpdef _promote(self, uint64_t mfn, int level)
    @cython.locals(base=uint64_t, slot=int)
    cpdef demote(self, uint64_t mfn, int level)
    @cython.locals(base=uint64_t, extra=uint64_t, slot=int, entry=uint64_t, taken=list)
    cdef _validate_upper(self, uint64_t mfn, int level)
    @cython.locals(slots=list, q=Words64, base=uint64_t, slot=int, at=uint64_t, entry=uint64_t, adjusted=uint64_t)
    cdef _validate_l1(self, uint64_t mfn)
    @cython.locals(frames=FrameCounts, q=Words64, base=uint64_t, slot=int, target=uint64_t, last=list, slots=list)
    cdef _invalidate_l1(self, uint64_t mfn)
    @cython.locals(mfn=uint64_t)
    cpdef pin(self, uint64_t number, int level)
    @cython.locals(frames=FrameCounts)
    cpdef unpin(self, uint64_t number)
    @cython.locals(mfn=uint64_t, frames=FrameCounts)
    cpdef write_plain(self, uint64_t address, uint64_t value)
