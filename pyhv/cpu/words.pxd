from libc.stdint cimport uint64_t, uint32_t, uint16_t, uint8_t
from cpython.buffer cimport PyObject_GetBuffer, PyBuffer_Release, Py_buffer, PyBUF_SIMPLE
from libc.string cimport memcpy

# Words64, Words32, Words16 and Octets: words of memory, to be indexed and nothing else. They are pointers; in the
# checked lane native/checked_words.pxi is in the place of this file, and they know their length.
include "words.pxi"

cdef enum:
    COMPILED = 1

cdef inline object new_words64(size_t count):
    return memoryview(bytearray(8 * count)).cast("Q")

cdef inline Words64 words64(object view) except *:
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE)
    PyBuffer_Release(&buffer)
    return words64_of(buffer.buf, <size_t> buffer.len)

cdef inline Words32 words32(object view) except *:
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE)
    PyBuffer_Release(&buffer)
    return words32_of(buffer.buf, <size_t> buffer.len)

cdef inline Words16 words16(object view) except *:
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE)
    PyBuffer_Release(&buffer)
    return words16_of(buffer.buf, <size_t> buffer.len)

cdef inline Octets octets(object view) except *:
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE)
    PyBuffer_Release(&buffer)
    return octets_of(buffer.buf, <size_t> buffer.len)

from cpython.bytes cimport PyBytes_FromStringAndSize

cdef inline bytes packed7(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g):
    cdef uint64_t[7] words
    words[0] = a; words[1] = b; words[2] = c; words[3] = d; words[4] = e; words[5] = f; words[6] = g
    return PyBytes_FromStringAndSize(<char *> words, 56)

cdef inline bytes packed8(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h):
    cdef uint64_t[8] words
    words[0] = a; words[1] = b; words[2] = c; words[3] = d; words[4] = e; words[5] = f; words[6] = g; words[7] = h
    return PyBytes_FromStringAndSize(<char *> words, 64)

ctypedef int (*reg_read_t)(void *, int, void *) noexcept nogil

cdef struct FlagsReader:
    reg_read_t function
    void *engine

cdef inline FlagsReader flags_reader(object lazy, uint64_t function, uint64_t engine) noexcept:
    cdef FlagsReader reader
    reader.function = <reg_read_t> function
    reader.engine = <void *> engine
    return reader

cdef inline uint64_t lazy_flags(FlagsReader reader) except? 0xDEADBEEF:
    cdef uint64_t value = 0
    if reader.function == NULL:
        raise AssertionError("no engine has said how lazy flags are computed")
    reader.function(reader.engine, 25, &value)
    return value

cdef inline bytes fetch(Octets octets, uint64_t size, uint64_t at, Py_ssize_t length):
    if length < 0 or at > size or <uint64_t> length > size - at:
        raise IndexError(at)
    return PyBytes_FromStringAndSize(<char *> part_of(octets, at, <size_t> length), length)

cdef inline int store(Octets octets, uint64_t size, uint64_t at, data) except -1:
    cdef Py_buffer buffer
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    if at > size or <uint64_t> buffer.len > size - at:
        PyBuffer_Release(&buffer)
        raise IndexError(at)
    memcpy(part_of(octets, at, <size_t> buffer.len), buffer.buf, <size_t> buffer.len)
    PyBuffer_Release(&buffer)
    return 0

cdef inline Words64 nine_at(Octets octets, uint64_t at) noexcept:
    return words64_of(part_of(octets, at, 72), 72)

cdef inline Words64 nine_in(bytes data) except *:
    return words64_of(<char *> data, <size_t> len(data))

cdef inline uint32_t word32_at(Octets octets, uint64_t at) noexcept:
    cdef uint32_t value
    memcpy(&value, part_of(octets, at, 4), 4)
    return value

cdef inline uint64_t word64_at(Octets octets, uint64_t at) noexcept:
    cdef uint64_t value
    memcpy(&value, part_of(octets, at, 8), 8)
    return value

cdef inline Words64 two_at(Octets octets, uint64_t at) noexcept:
    return words64_of(part_of(octets, at, 16), 16)

cdef inline Words64 two_in(bytes data) except *:
    return words64_of(<char *> data, <size_t> len(data))

cdef inline list present_in(Words64 q, uint64_t first):
    cdef list slots = []
    cdef int slot
    for slot in range(512):
        if q[first + slot] & 1:
            slots.append(slot)
    return slots
