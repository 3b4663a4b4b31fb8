# Of the checked lane, in the place of pyhv/cpu/words.pxi: words know how many they are, and an index beyond the
# last one ends the process with a message.
cdef extern from *:
    """
    #include <cstdio>
    #include <cstring>
    #include <execinfo.h>

    [[noreturn]] static void pyhv_beyond(size_t index, size_t length)
    {
        void *frames[16];
        fprintf(stderr, "pyhv: the checked lane: index %zd of %zu\\n", (ssize_t) index, length);
        backtrace_symbols_fd(frames, backtrace(frames, 16), 2);
        Py_FatalError("an index into memory is beyond its end");
    }

    template <typename Word> struct pyhv_words {
        Word *at;
        size_t length;
        pyhv_words() : at(nullptr), length(0) {}
        pyhv_words(void *first, size_t bytes) : at((Word *) first), length(bytes / sizeof(Word)) {}
        Word &operator[](size_t index) const
        {
            if (index >= length)
                pyhv_beyond(index, length);
            return at[index];
        }
        Word *part(size_t index, size_t count) const
        {
            if (index > length || count > length - index)
                pyhv_beyond(index + count, length);
            return at + index;
        }
    };
    typedef pyhv_words<uint64_t> pyhv_words64;
    typedef pyhv_words<uint32_t> pyhv_words32;
    typedef pyhv_words<uint16_t> pyhv_words16;
    typedef pyhv_words<uint8_t> pyhv_octets;
    """
    cdef cppclass Words64 "pyhv_words64":
        Words64()
        uint64_t& operator[](size_t)
    cdef cppclass Words32 "pyhv_words32":
        Words32()
        uint32_t& operator[](size_t)
    cdef cppclass Words16 "pyhv_words16":
        Words16()
        uint16_t& operator[](size_t)
    cdef cppclass Octets "pyhv_octets":
        Octets()
        uint8_t& operator[](size_t)
        uint8_t *part(size_t, size_t)
    Words64 words64_of "pyhv_words64" (void *first, size_t size) noexcept
    Words32 words32_of "pyhv_words32" (void *first, size_t size) noexcept
    Words16 words16_of "pyhv_words16" (void *first, size_t size) noexcept
    Octets octets_of "pyhv_octets" (void *first, size_t size) noexcept

cdef inline void *part_of(Octets octets, uint64_t at, size_t size) noexcept:
    return octets.part(at, size)
