ctypedef uint64_t *Words64
ctypedef uint32_t *Words32
ctypedef uint16_t *Words16
ctypedef uint8_t *Octets

# Words that begin at an address and are so many bytes.
cdef inline Words64 words64_of(void *first, size_t size) noexcept:
    return <Words64> first

cdef inline Words32 words32_of(void *first, size_t size) noexcept:
    return <Words32> first

cdef inline Words16 words16_of(void *first, size_t size) noexcept:
    return <Words16> first

cdef inline Octets octets_of(void *first, size_t size) noexcept:
    return <Octets> first

# Where `size` octets begin.
cdef inline void *part_of(Octets octets, uint64_t at, size_t size) noexcept:
    return octets + at
