# Arguments from Python as C values.  Inline: a page pair from Python costs 80 ns in all.
from cpython.bool cimport PyBool_Check
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from libc.stdint cimport int64_t, uint32_t

from realmem._kernel.page_alloc cimport gfp_is_valid
from realmem.compiler cimport unlikely
from realmem.types cimport MAX_PAGE_ORDER

cdef enum:
    GFP_BITS_MASK = 0x7FFDFF


cdef inline int64_t as_int(object value, str what) except? -1:
    cdef int overflow = 0
    cdef int64_t result
    if unlikely(not PyLong_Check(value) or PyBool_Check(value)):
        if PyBool_Check(value) or not hasattr(value, "__index__"):
            raise TypeError(f"{what} must be an int, not {type(value).__name__}")
        value = value.__index__()
    result = PyLong_AsLongLongAndOverflow(value, &overflow)
    if unlikely(overflow):
        raise ValueError(f"{what} is out of range: {value}")
    return result


# A number of bytes: an int, or a string such as "64K".
cdef inline int64_t as_size(object value, str what) except? -1:
    if unlikely(not PyLong_Check(value)) and isinstance(value, str):
        from realmem.layout import parse_size

        value = parse_size(value, what)
    return as_int(value, what)


cdef inline unsigned int as_order(object order) except? 99:
    cdef int64_t value = as_int(order, "order")
    if unlikely(value < 0 or value > MAX_PAGE_ORDER):
        raise ValueError(f"order {value} is not within 0 and {MAX_PAGE_ORDER}")
    return <unsigned int>value


cdef inline uint32_t as_gfp(object gfp) except? 0xFFFFFFFF:
    cdef int64_t value = as_int(gfp, "gfp")
    if unlikely(value & ~<int64_t>GFP_BITS_MASK):
        raise ValueError(f"gfp has unknown bits: {value:#x}")
    if unlikely(not gfp_is_valid(<uint32_t>value)):
        from realmem.layout import GFP

        raise ValueError(f"gfp names an impossible zone or type: {GFP(value)!r}")
    return <uint32_t>value
