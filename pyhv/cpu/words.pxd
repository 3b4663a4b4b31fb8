from libc.stdint cimport uint64_t, uint32_t, uint8_t
from cpython.buffer cimport PyObject_GetBuffer, PyBuffer_Release, Py_buffer, PyBUF_SIMPLE
from libc.string cimport memcpy

cdef inline void *_address(object view) except? NULL:
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE)
    cdef void *at = buffer.buf
    PyBuffer_Release(&buffer)
    return at

cdef inline uint64_t *words64(object view) except? NULL:
    return <uint64_t *> _address(view)

cdef inline uint32_t *words32(object view) except? NULL:
    return <uint32_t *> _address(view)

cdef inline uint8_t *octets(object view) except? NULL:
    return <uint8_t *> _address(view)

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

cdef inline int store(uint8_t *octets, uint64_t at, data) except -1:
    cdef Py_buffer buffer
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    memcpy(octets + at, buffer.buf, buffer.len)
    PyBuffer_Release(&buffer)
    return 0

cdef inline uint64_t *nine_at(uint8_t *octets, uint64_t at) except NULL:
    return <uint64_t *> (octets + at)

cdef inline uint64_t *nine_in(bytes data) except NULL:
    return <uint64_t *> <char *> data
