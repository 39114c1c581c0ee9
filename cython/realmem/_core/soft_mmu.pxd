# The software MMU, for faces of address spaces.
from realmem._core.space cimport Space

cdef class SoftMmu(Space):
    pass
