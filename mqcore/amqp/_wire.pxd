# Numbers as AMQP has them: the most significant octet first.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    FRAME_END = 0xCE
    FRAME_HEAD = 7          # octets: type, channel, size
    FRAME_EXTRA = 8         # these, and the one that ends it

cdef enum Frame:
    METHOD = 1
    HEADER = 2
    BODY = 3
    HEARTBEAT = 8

cdef enum Class:
    CONNECTION = 10
    CHANNEL = 20
    BASIC = 60

cdef enum Basic:
    PUBLISH = 40
    RETURN = 50
    DELIVER = 60
    GET_OK = 71
    ACK = 80
    REJECT = 90
    NACK = 120


cdef inline uint16_t get16(const uint8_t *p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])


cdef inline uint32_t get32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline uint64_t get64(const uint8_t *p) noexcept nogil:
    return (<uint64_t>get32(p) << 32) | get32(p + 4)


# Each returns where the next one goes.

cdef inline uint8_t *put8(uint8_t *p, unsigned int value) noexcept nogil:
    p[0] = <uint8_t>value
    return p + 1


cdef inline uint8_t *put16(uint8_t *p, unsigned int value) noexcept nogil:
    p[0] = <uint8_t>(value >> 8)
    p[1] = <uint8_t>value
    return p + 2


cdef inline uint8_t *put32(uint8_t *p, uint32_t value) noexcept nogil:
    return put16(put16(p, value >> 16), value & 0xFFFF)


cdef inline uint8_t *put64(uint8_t *p, uint64_t value) noexcept nogil:
    return put32(put32(p, <uint32_t>(value >> 32)), <uint32_t>value)


cdef inline uint8_t *put_frame_head(uint8_t *p, Frame kind, unsigned int channel, uint32_t size) noexcept nogil:
    return put32(put16(put8(p, kind), channel), size)


cdef inline uint8_t *put_method(uint8_t *p, unsigned int method_class, unsigned int method) noexcept nogil:
    return put16(put16(p, method_class), method)
