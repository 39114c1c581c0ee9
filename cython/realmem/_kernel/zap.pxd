# Taking away what page tables map.  Signal-safe; mm.lock held.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport address_space, mm_struct, mmu, vm_area_struct
from realmem.compiler cimport (
    SEQ_CST, atomic64_add_return, atomic64_fetch_and, atomic64_fetch_or,
)
from realmem.types cimport PG_anon_exclusive, PG_dirty, page

# Flush [start, end), clear its entries and give their frames up.  Guard markers stay unless
# drop_markers.
# Mirrors: mm/memory.c:unmap_page_range().
cdef void zap_range_locked(mm_struct* mm, uint64_t start, uint64_t end,
                           bint drop_markers) noexcept nogil
# The same for a part of one VMA, and for frames of its object only; `clean`: but those that
# were changed.
cdef void zap_object_locked(mm_struct* mm, const vm_area_struct* vma, uint64_t start,
                            uint64_t end, bint clean) noexcept nogil

# A new frame becomes a private page of a VMA that has its anon_vma, mapped once, exclusive.
# Mirrors: mm/rmap.c:folio_add_new_anon_rmap().
cdef void page_add_new_anon_rmap(mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                                 page* p) noexcept nogil

# The same for a page that comes back from a swap area, and that others may map or come to map.
# Mirrors: folio_add_anon_rmap_pte().
cdef void page_add_anon_rmap(mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                             page* p) noexcept nogil

# A frame of a file differs from the file from now on.
# Preconditions: object.lock held.
cdef inline void set_page_dirty_locked(address_space* object, page* p) noexcept nogil:
    if not p.flags & (1 << PG_dirty):
        atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_dirty, SEQ_CST)
        object.nr_dirty += 1
        atomic64_add_return(&object.mmu.nr_dirty, 1, SEQ_CST)

# What a page's mapping by one entry more, or one fewer, does to its counts; and how often it
# is mapped.
cdef inline void page_dup_rmap(page* p) noexcept nogil:
    if p.flags & (1 << PG_anon_exclusive):
        atomic64_fetch_and(&p.flags, ~(<uint64_t>1 << PG_anon_exclusive), SEQ_CST)
    # One word: the reference is the low half, the mapping the high one.
    atomic64_add_return(<int64_t*>&p.counts.word, 0x100000001, SEQ_CST)
cdef void page_remove_rmap(mm_struct* mm, page* p) noexcept nogil
# Its only owner's, whatever references others have.
cdef inline void set_anon_exclusive(page* p) noexcept nogil:
    if not p.flags & (1 << PG_anon_exclusive):
        atomic64_fetch_or(&p.flags, <uint64_t>1 << PG_anon_exclusive, SEQ_CST)
cdef inline int page_mapcount(const page* p) noexcept nogil:
    return p.counts.c.mapcount + 1

# A page is mapped by a locked VMA (once more), or by one less.
cdef void mlock_page(mmu* u, page* p) noexcept nogil
cdef void munlock_page(mmu* u, page* p) noexcept nogil
# The same for the frames of a range.  When a locked VMA goes, or its page is replaced, that
# comes first: others may go on mapping them.
# Mirrors: mm/mlock.c:mlock_pte_range(), munlock_vma_folio().
cdef void mlock_range_locked(mm_struct* mm, uint64_t start, uint64_t end,
                             bint on) noexcept nogil
