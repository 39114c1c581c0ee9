# Which node a fault's frame comes from: asked at each fault, with what is known by then.
# Signal-safe; mm.lock held.
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct, vm_area_struct
from realmem.types cimport page

# Where a copy goes when copy-on-write breaks (mmu.cow_node).
cdef enum:
    COW_POLICY = 0              # as any other page of the VMA: what Linux does
    COW_LOCAL = 1               # to the CPU that stores, whatever the policy
    COW_SOURCE = 2              # beside the page that is copied
    NR_COW_NODES = 3

# The node that a page of a VMA is to come from, -1: that of the CPU the fault happens on.
# `source` is the page that it becomes a copy of, or NULL.
# Mirrors: mm/mempolicy.c:get_vma_policy(), policy_nodemask().
cdef int policy_node(const mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                     const page* source) noexcept nogil

# Pages for a VMA, as its policy says.  Mirrors: mm/mempolicy.c:vma_alloc_folio().
cdef page* vma_alloc_pages(mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                           uint32_t gfp, unsigned int order, const page* source) noexcept nogil
