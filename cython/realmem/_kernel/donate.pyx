# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Who writes first after a fork is mostly the parent, whose window has the frame mapped, and the
# child's has nothing.  To let the writer have the copy, as Linux does, would take a map of another
# frame where an mprotect will do; and its frames would no longer lie in a row.
#
# The two differ in nothing but their place, so that a donation is for copies of the old frame's
# node: both then have a page on the node that they would have it on.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.edges cimport host_view
from realmem._kernel.host_calls cimport mutex_trylock, mutex_unlock
from realmem._kernel.mm_types cimport (
    HOST_NONE, MM_LIVE, PTE_PFN_MASK, PTE_SPECIAL, VM_LOCKED, mm_struct, pte_host, pte_pfn,
    pte_present, vm_area_struct, vma_slot,
)
from realmem._kernel.percpu cimport count_vm_event
from realmem._kernel.pgtable cimport is_huge_locked, pte_offset_locked
from realmem._kernel.rmap cimport rmap_place, rmap_places
from realmem._kernel.run cimport run_of
from realmem._kernel.tlb cimport scratch_in
from realmem._kernel.vmaindex cimport vma_find
from realmem._kernel.zap cimport mlock_page, munlock_page, set_anon_exclusive
from realmem.compiler cimport SEQ_CST, load64, unlikely
from realmem.types cimport (
    HOST_DONATION, PAGE_SHIFT, PAGE_SIZE, page, page_to_pfn, page_zone,
)

cdef extern from *:
    uint64_t atomic64_add "__atomic_add_fetch"(uint64_t* p, uint64_t v, int order) noexcept nogil

cdef enum:
    MOST_PLACES = 8             # of a large family so many are asked
    # page.counts as one word: refcount below, mapcount (mappings - 1) above.
    TWO_OWNERS = 0x100000002
    ONE_MAPPED_REF = 0x100000001


cdef bint donate_copy_locked(mm_struct* mm, const vm_area_struct* vma, const uint64_t* pte,
                             page* old, page* new) noexcept nogil:
    cdef rmap_place places[8]
    cdef mm_struct* other
    cdef bint given = False
    cdef int64_t n, i
    if (load64(&old.counts.word) != TWO_OWNERS
            or not has_mapped(mm, pte)
            or page_zone(mm.mmu.m, old).nid != page_zone(mm.mmu.m, new).nid):
        return False
    n = rmap_places(mm.mmu, old, places, 0, MOST_PLACES)
    for i in range(n):
        other = places[i].mm
        # Out of the order of locks, so it is only tried.
        if given or other == mm or not mutex_trylock(&other.lock):
            continue
        given = (other.id == places[i].mm_id and other.state == MM_LIVE
                 and take_copy(other, mm, vma, places[i].address, old, new))
        mutex_unlock(&other.lock)
    if given:
        count_vm_event(mm.mmu.m, HOST_DONATION, 1)
    return given


# Whether the host has the entry's frame in the window, be it without access.
cdef inline bint has_mapped(mm_struct* mm, const uint64_t* pte) noexcept nogil:
    cdef uint64_t view = host_view(run_of(mm.mmu.m, pte), pte)
    return pte_host(view) != HOST_NONE and pte_pfn(view) == pte_pfn(pte[0])


# Both locks are held.
cdef bint take_copy(mm_struct* other, mm_struct* mm, const vm_area_struct* vma, uint64_t addr,
                    page* old, page* new) noexcept nogil:
    cdef vma_slot* slot = vma_find(&other.vmas, addr)
    cdef uint64_t* pte = pte_offset_locked(other, addr)
    # A scratch page may show the frame.
    if (slot == NULL or addr < slot.start or pte == NULL or not pte_present(pte[0])
            or pte[0] & PTE_SPECIAL or pte_pfn(pte[0]) != page_to_pfn(mm.mmu.m, old)
            or pte_host(pte[0]) != HOST_NONE or is_huge_locked(other, addr)
            or scratch_in(other, addr, addr + PAGE_SIZE)):
        return False
    # The two that map it are locked now: a count of two stays that.
    if load64(&old.counts.word) != TWO_OWNERS:
        return False
    if unlikely(vma.vm_flags & VM_LOCKED):
        munlock_page(mm.mmu, new)
    if unlikely(slot.vma.vm_flags & VM_LOCKED):
        munlock_page(mm.mmu, old)
        mlock_page(mm.mmu, new)
    pte[0] = (pte[0] & ~<uint64_t>PTE_PFN_MASK) | (page_to_pfn(mm.mmu.m, new) << PAGE_SHIFT)
    mm.core.anon_rss -= 1               # it was counted for the copy
    atomic64_add(&old.counts.word, -<uint64_t>ONE_MAPPED_REF, SEQ_CST)
    set_anon_exclusive(old)
    return True
