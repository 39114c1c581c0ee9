# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.kernel_caches cimport SHMEM_INODE, kernel_alloc, kernel_free
from realmem._kernel.lock_order cimport LOCK_SHMEM, check_mutex
from realmem._kernel.mm_types cimport (
    FAULT_OK, FAULT_OOM, FAULT_SIGBUS, MM_LIVE, mmu, shmem,
)
from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport get_page, put_page
from realmem._kernel.radix_tree cimport (
    radix_erase, radix_load, radix_next, radix_store,
)
from realmem._kernel.rmap cimport rmap_place, rmap_ranges
from realmem._kernel.zap cimport zap_range_locked
from realmem.compiler cimport SEQ_CST, atomic64_add_return, atomic_add_return
from realmem.types cimport (
    GFP_HIGHUSER_MOVABLE, GFP_ZERO, PG_dirty, PG_swapbacked, PG_uptodate, page,
)

cdef enum: FEW = 32
cdef enum: OBJECT_FLAGS = 1 << PG_swapbacked | 1 << PG_uptodate | 1 << PG_dirty


# ---- promises ---------------------------------------------------------------

cdef int vm_enough_memory(mmu* u, int64_t pages, bint may_reserve,
                          int64_t total_vm) noexcept nogil:
    cdef int64_t now = atomic64_add_return(&u.committed, pages, SEQ_CST)
    cdef int64_t allowed
    if pages <= 0 or u.overcommit == 1:
        return 0
    if u.overcommit == 0:
        if pages <= u.total_pages:
            return 0
    else:
        allowed = u.commit_limit
        if not may_reserve:
            allowed -= u.admin_reserve
        allowed -= min(total_vm / 32, u.user_reserve)
        if now < allowed:
            return 0
    atomic64_add_return(&u.committed, -pages, SEQ_CST)
    return -ENOMEM


# ---- life -------------------------------------------------------------------

cdef shmem* shmem_create(mmu* u, uint64_t pages, bint noreserve, bint may_reserve,
                         int64_t total_vm) noexcept nogil:
    cdef shmem* object
    if not noreserve and vm_enough_memory(u, <int64_t>pages, may_reserve, total_vm) != 0:
        return NULL
    object = <shmem*>kernel_alloc(u.m, SHMEM_INODE)
    if object == NULL:
        if not noreserve:
            atomic64_add_return(&u.committed, -<int64_t>pages, SEQ_CST)
        return NULL
    memset(object, 0, sizeof(shmem))
    check_mutex(u.m, &object.lock, LOCK_SHMEM, 0)
    object.refcount = 1
    object.size = pages
    object.noreserve = noreserve
    object.charged = 0 if noreserve else pages
    object.mmu = u
    object.id = <uint64_t>atomic64_add_return(<int64_t*>&u.next_object_id, 1, SEQ_CST)
    atomic64_add_return(&u.nr_shmem_objects, 1, SEQ_CST)
    return object


cdef void shmem_get(shmem* object) noexcept nogil:
    atomic_add_return(&object.refcount, 1, SEQ_CST)


cdef void shmem_put(shmem* object) noexcept nogil:
    cdef mmu* u = object.mmu
    if atomic_add_return(&object.refcount, -1, SEQ_CST) != 0:
        return
    remove_pages(object, 0, <uint64_t>-1)
    atomic64_add_return(&u.committed, -<int64_t>object.charged, SEQ_CST)
    atomic64_add_return(&u.nr_shmem_objects, -1, SEQ_CST)
    kernel_free(u.m, SHMEM_INODE, object)


# ---- frames -----------------------------------------------------------------

cdef page* shmem_get_page(shmem* object, uint64_t index, int nid, bint make,
                          int* rc_ret) noexcept nogil:
    cdef page* p = NULL
    mutex_lock(&object.lock)
    if index >= object.size:
        rc_ret[0] = FAULT_SIGBUS
    else:
        rc_ret[0] = FAULT_OK
        p = <page*>radix_load(object.root, index)
        if p == NULL and make:
            p = add_page(object, index, nid)
            rc_ret[0] = FAULT_OK if p != NULL else FAULT_OOM
        if p != NULL:
            get_page(p)
    mutex_unlock(&object.lock)
    return p


cdef page* add_page(shmem* object, uint64_t index, int nid) noexcept nogil:
    cdef mmu* u = object.mmu
    cdef page* p
    if object.noreserve and vm_enough_memory(u, 1, False, 0) != 0:
        return NULL
    p = alloc_pages_node(u.m, nid, GFP_HIGHUSER_MOVABLE | GFP_ZERO, 0)
    if p != NULL and radix_store(u.m, &object.root, index, p) != 0:
        put_page(u.m, p)
        p = NULL
    if p == NULL:
        if object.noreserve:
            atomic64_add_return(&u.committed, -1, SEQ_CST)
        return NULL
    p.flags |= OBJECT_FLAGS
    p.mapping = object
    p.index = index
    object.nr_pages += 1
    object.charged += object.noreserve
    atomic64_add_return(&u.nr_shmem, 1, SEQ_CST)
    return p


# Take out the frames [first, last] that nobody maps.
# Returns: whether that was all of them.
cdef bint remove_pages(shmem* object, uint64_t first, uint64_t last) noexcept nogil:
    cdef mmu* u = object.mmu
    cdef uint64_t index = first
    cdef page* p
    cdef bint all = True
    mutex_lock(&object.lock)
    while True:
        p = <page*>radix_next(object.root, &index)
        if p == NULL or index > last:
            break
        if p.counts.c.mapcount >= 0:
            all = False
        else:
            radix_erase(u.m, &object.root, index)
            p.mapping = NULL
            p.flags &= ~<uint64_t>OBJECT_FLAGS
            put_page(u.m, p)
            object.nr_pages -= 1
            if object.noreserve:
                object.charged -= 1
                atomic64_add_return(&u.committed, -1, SEQ_CST)
            atomic64_add_return(&u.nr_shmem, -1, SEQ_CST)
        index += 1
        if index == 0:
            break
    mutex_unlock(&object.lock)
    return all


cdef void shmem_punch(shmem* object, uint64_t first, uint64_t last) noexcept nogil:
    cdef rmap_place places[FEW]
    cdef uint64_t ends[FEW]
    cdef int64_t n, i, skip
    while not remove_pages(object, first, last):
        skip = 0
        n = FEW
        while n == FEW:
            n = rmap_ranges(object.mmu, &object.i_mmap, first, last, places, ends, skip, FEW)
            skip += n
            for i in range(n):
                mutex_lock(&places[i].mm.lock)
                if places[i].mm.id == places[i].mm_id and places[i].mm.state == MM_LIVE:
                    # What was found may have changed since: only the object's entries go.
                    zap_range_locked(places[i].mm, places[i].address, ends[i], object, False)
                mutex_unlock(&places[i].mm.lock)
