# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The seam for memory policies.  vm_area_struct.policy tells them apart; 0, the default policy,
# takes memory near the CPU, and is the only one so far.
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct, vm_area_struct
from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem.compiler cimport unlikely
from realmem.types cimport page, page_zone


cdef int policy_node(const mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                     const page* source) noexcept nogil:
    if unlikely(mm.mmu.cow_node == COW_SOURCE) and source != NULL:
        return page_zone(mm.mmu.m, source).nid
    return -1


cdef page* vma_alloc_pages(mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                           uint32_t gfp, unsigned int order, const page* source) noexcept nogil:
    return alloc_pages_node(mm.mmu.m, policy_node(mm, vma, addr, source), gfp, order)
