# Reverse maps: from a frame to the VMAs that may map it.  All are guarded by mmu.rmap_lock,
# which these take; below every mm.lock and address_space.lock.  Signal-safe.
# Compare mm/rmap.c, mm/interval_tree.c.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport anon_vma, mm_struct, mmu, rmap_node, vm_area_struct
from realmem.compiler cimport SEQ_CST, atomic64_add_return, atomic_add_return
from realmem.types cimport page

# Give a VMA its anon_vma before its first anonymous page: that of a neighbour it could merge
# with, or a new one.  Preconditions: mm.lock held.
# Mirrors: __anon_vma_prepare(), find_mergeable_anon_vma().
# Returns: 0 or -ENOMEM.
cdef int anon_vma_prepare(mm_struct* mm, vm_area_struct* vma) noexcept nogil

# Enter a VMA's range, once it has an anon_vma or an object and whenever its range will have
# changed; take it out before.
cdef void rmap_link(mmu* u, vm_area_struct* vma) noexcept nogil
cdef void rmap_unlink(mmu* u, vm_area_struct* vma) noexcept nogil
# A VMA keeps its anon_vma until its descriptor is freed: frames name it until they are unmapped,
# and relatives may be gone by then.
cdef inline void anon_vma_get(anon_vma* of) noexcept nogil:
    atomic_add_return(&of.refcount, 1, SEQ_CST)
cdef void anon_vma_put(mmu* u, anon_vma* of) noexcept nogil

# Around a change that takes VMAs out and puts them in again: rmap_ranges() misses them meanwhile.
cdef inline void rmap_relink_begins(mmu* u) noexcept nogil:
    atomic64_add_return(&u.relinking, 1, SEQ_CST)
cdef inline void rmap_relink_ends(mmu* u) noexcept nogil:
    atomic64_add_return(&u.relinks, 1, SEQ_CST)
    atomic64_add_return(&u.relinking, -1, SEQ_CST)

# A child's VMA shares the anonymous pages of its parent's.  Mirrors: anon_vma_fork().
cdef void anon_vma_fork(mmu* u, vm_area_struct* child,
                        const vm_area_struct* parent) noexcept nogil

# One place where a page may be mapped.
cdef struct rmap_place:
    mm_struct* mm
    uint64_t mm_id
    uint64_t address

# Where p, which is mapped and stays so, may be: up to n places from the skip-th on; a page table
# may have dropped it.
# Returns: how many.
cdef int64_t rmap_places(mmu* u, const page* p, rmap_place* places, int64_t skip,
                         int64_t n) noexcept nogil
# The same for the page of an anon_vma that has this index.
cdef int64_t rmap_anon_places(mmu* u, anon_vma* of, uint64_t index, rmap_place* places,
                              int64_t skip, int64_t n) noexcept nogil
# A walk over all places of an object: each is found, if no change of VMAs was under way from
# its begin to its end.
# Returns: what rmap_walk_missed() is asked with at the end.
cdef inline int64_t rmap_walk_begins(mmu* u) noexcept nogil:
    cdef int64_t relinks = atomic64_add_return(&u.relinks, 0, SEQ_CST)
    return relinks if atomic64_add_return(&u.relinking, 0, SEQ_CST) == 0 else -1
cdef inline bint rmap_walk_missed(mmu* u, int64_t begun) noexcept nogil:
    return rmap_walk_begins(u) != begun or begun < 0

# The same for pages [first, last] of what `root` is the treap of (an object's): VMAs, with the
# address of the first such page in each; the VMA's end is not told.
cdef int64_t rmap_ranges(mmu* u, rmap_node** root, uint64_t first, uint64_t last,
                         rmap_place* places, uint64_t* ends, int64_t skip,
                         int64_t n) noexcept nogil
