# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""
Page allocators under test, as the measuring loops see them: realmem's own; LLFree's is llfree.pyx.

Each allocator is called through one function pointer with its own signature, so neither pays
for an adapter that the other is spared.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

from realmem._core.pages cimport PageAllocator
from realmem._kernel.page_alloc cimport gfp_is_valid
from realmem._kernel.percpu cimport drain_all_pages
from realmem.types cimport PAGE_SIZE, machine


cdef class Allocator:
    """An allocator under test."""

    cdef int ready(self) except -1:
        return 0

    cdef void drain(self) noexcept nogil:
        pass


cdef class RealmemAllocator(Allocator):
    """
    A machine's page allocator.

    :param pages: the machine's compiled allocator.
    :param nid: the node that every allocation asks for.
    :param gfp: the flags of every allocation.
    """

    cdef PageAllocator pages

    def __cinit__(self, PageAllocator pages not None, int nid, uint32_t gfp):
        pages.alive()
        if nid < 0 or nid >= pages.m.nr_nodes:
            raise ValueError(f"no node {nid}")
        if not gfp_is_valid(gfp):
            raise ValueError(f"bad gfp {gfp:#x}")
        self.name = "realmem"
        self.pages = pages
        self.t.kind = REALMEM
        self.t.nid = nid
        self.t.gfp = gfp
        self.t.self = pages.m

    cdef int ready(self) except -1:
        self.pages.alive()
        return 0

    cdef void drain(self) noexcept nogil:
        drain_all_pages(<machine*>self.t.self)


cdef void* touched_block(uint64_t size) noexcept nogil:
    cdef void* block = NULL
    cdef uint64_t rounded = (size + 63) & ~<uint64_t>63
    if rounded == 0:
        rounded = 64
    if posix_memalign(&block, PAGE_SIZE, rounded) != 0:
        return NULL
    memset(block, 0, rounded)
    return block
