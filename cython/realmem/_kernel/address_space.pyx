# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.kernel_caches cimport SHMEM_INODE, kernel_alloc, kernel_free
from realmem._kernel.lock_order cimport LOCK_ADDRESS_SPACE, check_mutex
from realmem._kernel.lru cimport lru_add, lru_del
from realmem._kernel.mm_types cimport (
    MM_LIVE, address_space, linear_page_index, mm_struct, mmu, vm_area_struct, vma_cursor,
    vma_slot,
)
from realmem._kernel.page_free cimport put_page
from realmem._kernel.radix_tree cimport radix_erase, radix_next, radix_store
from realmem._kernel.rmap cimport (
    rmap_place, rmap_ranges, rmap_walk_begins, rmap_walk_missed,
)
from realmem._kernel.swap cimport swap_free
from realmem._kernel.vmaindex cimport vma_first, vma_next
from realmem._kernel.zap cimport zap_object_locked, zap_range_locked
from realmem.compiler cimport (
    SEQ_CST, atomic64_add_return, atomic64_fetch_and, atomic64_fetch_or, atomic_add_return,
    load_int,
)
from realmem.linux cimport sched_yield
from realmem.types cimport (
    PAGE_SHIFT, PG_dirty, PG_file, PG_lru, PG_shmem, PG_swapbacked, PG_uptodate, list_add,
    list_del, page,
)

cdef enum: FEW = 32
cdef enum: TURNS = 64
cdef enum: FEW_TURNS = 4
cdef enum:
    ENTERED = (1 << PG_swapbacked | 1 << PG_uptodate | 1 << PG_dirty | 1 << PG_file
               | 1 << PG_shmem)


# ---- life -------------------------------------------------------------------

cdef address_space* mapping_create(mmu* u) noexcept nogil:
    cdef address_space* object = <address_space*>kernel_alloc(u.m, SHMEM_INODE)
    if object == NULL:
        return NULL
    memset(object, 0, sizeof(address_space))
    check_mutex(u.m, &object.lock, LOCK_ADDRESS_SPACE, 0)
    object.refcount = 1
    object.mmu = u
    object.fd = object.write_fd = -1
    object.id = <uint64_t>atomic64_add_return(<int64_t*>&u.next_object_id, 1, SEQ_CST)
    atomic64_add_return(&u.nr_address_spaces, 1, SEQ_CST)
    return object


cdef void mapping_get(address_space* object) noexcept nogil:
    atomic_add_return(&object.refcount, 1, SEQ_CST)


cdef void mapping_put(address_space* object) noexcept nogil:
    cdef mmu* u = object.mmu
    if atomic_add_return(&object.refcount, -1, SEQ_CST) != 0:
        return
    remove_pages(object, 0, <uint64_t>-1, TAKE_ALL, False)
    atomic64_add_return(&u.committed, -<int64_t>object.charged, SEQ_CST)
    atomic64_add_return(&u.nr_address_spaces, -1, SEQ_CST)
    kernel_free(u.m, SHMEM_INODE, object)


# ---- frames -----------------------------------------------------------------

cdef int mapping_add_locked(address_space* object, uint64_t index, page* p,
                            uint64_t flags) noexcept nogil:
    cdef int rc = radix_store(object.mmu.m, &object.root, index, p)
    if rc == 0:
        mapping_enter_locked(object, index, p, flags)
    return rc


cdef void mapping_enter_locked(address_space* object, uint64_t index, page* p,
                               uint64_t flags) noexcept nogil:
    cdef mmu* u = object.mmu
    p.mapping = object
    p.index = index
    atomic64_fetch_or(&p.flags, flags, SEQ_CST)     # last: reclaim may look at it from here on
    object.nr_pages += 1
    atomic64_add_return(&u.nr_file if object.is_file else &u.nr_shmem, 1, SEQ_CST)
    lru_add(u, p)


# Take out the frames [first, last] that nobody maps; with `patient`, nor is about to.
# Returns: whether that was all of them.
cdef bint remove_pages(address_space* object, uint64_t first, uint64_t last, int what,
                       bint patient) noexcept nogil:
    cdef uint64_t index = first
    cdef page* p
    cdef bint all = True
    mutex_lock(&object.lock)
    while True:
        p = <page*>radix_next(object.root, &index)
        if p == NULL or index > last:
            break
        if is_value(p):
            if what != TAKE_CLEAN:
                remove_swapped_locked(object, index, value_entry(p))
        elif what == TAKE_CLEAN and p.flags & (1 << PG_dirty):
            pass
        elif p.counts.c.mapcount >= 0 or (patient and p.counts.c.refcount != 1):
            all = False
        else:
            remove_locked(object, index, p)
        index += 1
        if index == 0:
            break
    mutex_unlock(&object.lock)
    return all


cdef void remove_locked(address_space* object, uint64_t index, page* p) noexcept nogil:
    radix_erase(object.mmu.m, &object.root, index)
    mapping_leave_locked(object, p)
    put_page(object.mmu.m, p)
    uncharge_locked(object)


cdef void remove_swapped_locked(address_space* object, uint64_t index,
                                uint64_t entry) noexcept nogil:
    radix_erase(object.mmu.m, &object.root, index)
    mapping_swapped_locked(object, -1)
    swap_free(object.mmu, entry)
    uncharge_locked(object)


cdef inline void uncharge_locked(address_space* object) noexcept nogil:
    if object.noreserve:
        object.charged -= 1
        atomic64_add_return(&object.mmu.committed, -1, SEQ_CST)


cdef void mapping_swapped_locked(address_space* object, int64_t by) noexcept nogil:
    cdef uint64_t before = object.nr_swapped
    object.nr_swapped = before + <uint64_t>by
    if before == 0 or object.nr_swapped == 0:
        mutex_lock(&object.mmu.swap_lock)
        if before == 0:
            list_add(&object.swaplist, &object.mmu.shmem_swaplist)
        else:
            list_del(&object.swaplist)
        mutex_unlock(&object.mmu.swap_lock)


cdef void mapping_leave_locked(address_space* object, page* p) noexcept nogil:
    cdef mmu* u = object.mmu
    cdef uint64_t was = atomic64_fetch_and(&p.flags, ~<uint64_t>ENTERED, SEQ_CST)
    if was & (1 << PG_lru):
        lru_del(u, p, was)
    p.mapping = NULL
    if object.is_file and was & (1 << PG_dirty):
        object.nr_dirty -= 1
        atomic64_add_return(&u.nr_dirty, -1, SEQ_CST)
    object.nr_pages -= 1
    atomic64_add_return(&u.nr_file if object.is_file else &u.nr_shmem, -1, SEQ_CST)


cdef void mapping_empty(address_space* object) noexcept nogil:
    remove_pages(object, 0, <uint64_t>-1, TAKE_ALL, False)
    # Reclaim finds it by its frames alone.
    while load_int(<int*>&object.borrowed) != 0:
        sched_yield()


cdef void mapping_invalidate(address_space* object) noexcept nogil:
    remove_pages(object, 0, <uint64_t>-1, TAKE_CLEAN, True)


cdef bint mapping_drop(address_space* object, uint64_t first, uint64_t last,
                       int what) noexcept nogil:
    cdef int turns = 0
    cdef bint all = mapping_unmap(object, first, last, what)
    # A fault may hold a frame that it is about to map; a pin holds one for long, and only
    # what equals the file may wait for it.
    while not remove_pages(object, first, last, what, turns < TURNS or what == TAKE_CLEAN) or (
            not all and turns < TURNS):
        if what == TAKE_CLEAN and turns == FEW_TURNS:
            return False
        all = mapping_unmap(object, first, last, what)
        turns += turns < TURNS
    return True


# ---- mappings ---------------------------------------------------------------

cdef bint mapping_walk(address_space* object, uint64_t first, uint64_t last, place_visitor visit,
                       void* data) noexcept nogil:
    cdef rmap_place places[FEW]
    cdef uint64_t ends[FEW]
    cdef int64_t begun = rmap_walk_begins(object.mmu)
    cdef int64_t i, skip = 0
    cdef int64_t n = FEW
    while n == FEW:
        n = rmap_ranges(object.mmu, &object.i_mmap, first, last, places, ends, skip, FEW)
        skip += n
        for i in range(n):
            mutex_lock(&places[i].mm.lock)
            if places[i].mm.id == places[i].mm_id and places[i].mm.state == MM_LIVE:
                visit(places[i].mm, object, places[i].address, ends[i], data)
            mutex_unlock(&places[i].mm.lock)
    return not rmap_walk_missed(object.mmu, begun)


# What is to be unmapped.
cdef struct unmap_plan:
    uint64_t first
    uint64_t last
    int what


cdef bint mapping_unmap(address_space* object, uint64_t first, uint64_t last,
                        int what) noexcept nogil:
    cdef unmap_plan plan
    plan.first = first
    plan.last = last
    plan.what = what
    return mapping_walk(object, first, last, unmap_from, &plan)


cdef void unmap_from(mm_struct* mm, address_space* object, uint64_t start, uint64_t end,
                     void* data) noexcept nogil:
    cdef const unmap_plan* plan = <const unmap_plan*>data
    cdef vma_cursor cursor
    cdef vma_slot* slot = vma_first(&mm.vmas, start, &cursor)
    cdef vm_area_struct* vma
    cdef uint64_t low, high
    while slot != NULL and slot.start < end:
        vma = slot.vma
        if vma.vm_object == object:
            low = linear_page_index(vma, vma.vm_start)
            high = linear_page_index(vma, vma.vm_end - 1)
            if low <= plan.last and high >= plan.first:
                low = vma.vm_start + ((max(plan.first, low) - low) << PAGE_SHIFT)
                high = vma.vm_end - ((high - min(high, plan.last)) << PAGE_SHIFT)
                if plan.what == TAKE_ALL:
                    zap_range_locked(mm, low, high, False)
                else:
                    zap_object_locked(mm, vma, low, high, plan.what == TAKE_CLEAN)
        slot = vma_next(&cursor)
